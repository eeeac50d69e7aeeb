"""The service of common tutorials: FastAPI around ``generate``, one request at a time.

Run by the project's interpreter. Arguments: folder of the model, threads. Writes its URL as its first line.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    """A prompt and a length."""

    prompt: list[int]
    max_new_tokens: int


def create_app(folder: str) -> FastAPI:
    """The application, its model loaded."""
    from transformers import AutoModelForCausalLM

    app = FastAPI()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @app.post("/generate")
    async def generate(body: Body) -> dict[str, list[int]]:
        prompt_BT = torch.tensor([body.prompt])
        with torch.inference_mode():
            output_BT = model.generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=body.max_new_tokens,
                min_new_tokens=body.max_new_tokens,
                do_sample=False,
            )
        return {"tokens": output_BT[0, len(body.prompt) :].tolist()}

    return app


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    app = create_app(folder)
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
