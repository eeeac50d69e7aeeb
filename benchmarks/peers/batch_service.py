"""``@serve.batch`` over ``generate``, as Ray's documentation shows it: batches wait for their longest answer."""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from starlette.requests import Request

_MOST, _WAIT_S = 32, 0.05


@serve.deployment(max_ongoing_requests=1000)
class Batched:
    """One model; what comes within a moment is one batch.

    Args:
        folder: Of the model.
        threads: Compute threads, each on a core of its own.
    """

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._pad = AutoTokenizer.from_pretrained(folder).pad_token_id or 0

    async def __call__(self, request: Request) -> dict[str, list[int]]:
        """Answer ``{"prompt": token ids, "max_new_tokens": count}``."""
        return {"tokens": await self._generate(await request.json())}

    @serve.batch(max_batch_size=_MOST, batch_wait_timeout_s=_WAIT_S)
    async def _generate(self, bodies: list[dict[str, Any]]) -> list[list[int]]:
        import torch

        width = max(len(body["prompt"]) for body in bodies)
        missing = [width - len(body["prompt"]) for body in bodies]
        padded = [[self._pad] * gap + body["prompt"] for gap, body in zip(missing, bodies, strict=True)]
        tokens_BT = torch.tensor(padded)
        mask_BT = torch.tensor([[0] * gap + [1] * (width - gap) for gap in missing])
        longest = max(body["max_new_tokens"] for body in bodies)
        with torch.inference_mode():
            output_BT = self._model.generate(
                tokens_BT, attention_mask=mask_BT, max_new_tokens=longest, min_new_tokens=longest, do_sample=False
            )
        rows = output_BT[:, width:].tolist()
        return [row[: body["max_new_tokens"]] for row, body in zip(rows, bodies, strict=True)]
