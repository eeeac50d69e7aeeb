"""What the page's buttons do: questions to the service, and what to show while answers come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rayloom.errors import ServiceError
from rayloom.serving.page.asking import Asker, Json
from rayloom.serving.page.settings import Settings

_PACE_S = 0.05
"""Between two looks at answers that go on: each shows the whole text anew."""


@dataclass
class Progress:
    """An answer that is being written.

    Attributes:
        text: As far as it is there.
        status: One line about it.
    """

    text: str = ""
    status: str = "waiting …"


async def model_names(asker: Asker, secret: str | None) -> list[str]:
    """Names of all models that may be asked.

    Raises:
        ServiceError: The service does not tell.
    """
    found = await asker.get("/v1/models", secret)
    return [str(model["id"]) for model in found["data"]]


async def write(
    asker: Asker, prompt: Mapping[str, Any], settings: Settings, *, model: str | None, secret: str | None
) -> AsyncGenerator[Progress]:
    """An answer, piece by piece. Closing the generator stops the model.

    Args:
        asker: Of the service.
        prompt: What to send beside the parameters: ``prompt`` and ``context``, or ``messages``.
        settings: How to write.
        model: Name of the model; the service's choice where not given.
        secret: API key; None where none is asked for.

    Raises:
        ServiceError: The service refuses, or fails.
    """
    body: Json = {**prompt, **settings.parameters(), "stream": True}
    if model:
        body["model"] = model
    progress, began_s = Progress(), time.monotonic()
    first_s: float | None = None
    async with aclosing(asker.events("/generate", body, secret)) as events:
        async for event in events:
            if first_s is None:
                first_s = time.monotonic() - began_s
            if event.get("index", 0) == 0:
                progress.text += event.get("text", "")
            progress.status = "writing …"
            if "usage" in event:
                progress.status = _summary(event, first_s, time.monotonic() - began_s)
            yield progress


async def side_by_side(answers: Sequence[AsyncGenerator[Progress]]) -> AsyncGenerator[list[Progress]]:
    """Answers at once: how far each is, as they go on, but so seldom that a browser keeps up with a fast model.

    An error is that answer's last status. Closing the generator closes all.
    """
    latest = [Progress() for _ in answers]
    changed: asyncio.Queue[bool] = asyncio.Queue()

    async def follow(place: int, steps: AsyncGenerator[Progress]) -> None:
        try:
            async with aclosing(steps):
                async for progress in steps:
                    latest[place] = progress
                    changed.put_nowait(False)
        except ServiceError as error:
            latest[place] = Progress(latest[place].text, failure(error))
        finally:
            changed.put_nowait(True)

    tasks = [asyncio.create_task(follow(*each)) for each in enumerate(answers)]
    num_open = len(tasks)
    try:
        yield latest
        while num_open:
            num_open -= await changed.get()
            while not changed.empty():
                num_open -= changed.get_nowait()
            yield latest
            await asyncio.sleep(_PACE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def failure(error: ServiceError) -> str:
    """What is shown where an answer's figures would be."""
    return f"⚠ {error}"


def _summary(last: Json, first_s: float, whole_s: float) -> str:
    usage, num_tokens = last["usage"], last["usage"]["completion_tokens"]
    why = {"stop": "ended by itself", "length": "at the token limit", "time": "out of time"}[last["finish_reason"]]
    rate = f" · {(num_tokens - 1) / (whole_s - first_s):.1f} tokens/s" if num_tokens > 1 and whole_s > first_s else ""
    return (
        f"{last['model']} · {usage['prompt_tokens']} + {num_tokens} tokens · first after {first_s * 1000:.0f} ms"
        f"{rate} · {why}"
    )
