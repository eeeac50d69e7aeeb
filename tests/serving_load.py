"""Load on a served model while something happens to it, and models that open in no time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from rayloom.config import ServingConfig
from rayloom.serving.replicas import ModelFactory


def quick_models() -> ModelFactory:
    """Opens models that answer with their artifact and the id of their process, after as many seconds as asked.

    An artifact whose name has 'broken' in it does not open. Streams count up, ten numbers a second. A call counts as
    100 tokens. Whoever asks for a text of tokens is told how many calls and streams are held.
    """

    def open_quick(config: ServingConfig) -> Any:
        import asyncio

        from rayloom.errors import ArtifactError
        from rayloom.serving.calls import Call, Choice, Completion, Figures, ModelInfo, Part, Started, TextCall, Tokens
        from rayloom.serving.observing.metrics import _COUNTS, _GAUGES

        if "broken" in config.artifact:
            raise ArtifactError(f"{config.artifact}: a golden prompt does not replay")
        name = config.name or "quick"

        class Quick:
            info = ModelInfo(
                name,
                "t5",
                "question-answering",
                adapters=tuple(ModelInfo(each, "t5", "question-answering", parent=name) for each in config.adapters),
            )
            num_held = 0

            async def complete(self, call: Call) -> Completion:
                self.num_held += 1
                try:
                    await asyncio.sleep(float(call.prompt.text))
                finally:
                    self.num_held -= 1
                text = f"{config.artifact} {os.getpid()} {call.parameters.get('seed', call.drawn_seed)}"
                return Completion(Started(name, "fp", 1), (Choice(text, "stop"),), 1)

            async def stream(self, call: Call) -> Any:
                self.num_held += 1
                try:
                    yield Started(name, "fp", 1)
                    for number in range(int(call.prompt.text)):
                        yield Part(0, f"{number}:{os.getpid()} ", 1)
                        await asyncio.sleep(0.1)
                    yield Part(0, config.artifact, 0, finish_reason="stop")
                finally:
                    self.num_held -= 1

            def tokens(self, call: TextCall) -> Tokens:
                return Tokens(str(self.num_held), ())

            def figures(self) -> Figures:
                numbers = {
                    **dict.fromkeys((*_GAUGES, *_COUNTS), 0.0),
                    "num_sequences": self.num_held,
                    "max_sequences": 64,
                }
                return Figures(name, numbers, tokens_in_flight=100 * self.num_held)

        return Quick()

    return open_quick


@dataclass
class Load:
    """What clients saw.

    Attributes:
        statuses: How often each status came; 0 for no answer at all.
        texts: Answers in the order in which they came.
        problems: The first answers that were none.
        seconds: How long each answer took.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, status: int, text: str, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.texts.append(text)
            self.seconds.append(seconds)
        elif len(self.problems) < 10:
            self.problems.append(f"{status}: {text[:300]}")


@contextlib.contextmanager
def under_load(
    url: str, model: str | None, *, num_clients: int = 4, seconds: float = 0.05, pause_s: float = 0.0, **more: Any
) -> Iterator[Load]:
    """Clients that ask one thing after the other while the context lasts.

    Args:
        url: Of the service.
        model: Which one to ask.
        num_clients: How many.
        seconds: The prompt: how long a quick model takes.
        pause_s: Between two requests of a client.
        more: Further fields of each request.
    """
    load, is_over = Load(), threading.Event()
    body = {"prompt": str(seconds), "model": model, **more}
    clients = [threading.Thread(target=_ask, args=(url, body, load, is_over, pause_s)) for _ in range(num_clients)]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        is_over.set()
        for client in clients:
            client.join()


def _ask(url: str, body: dict[str, Any], load: Load, is_over: threading.Event, pause_s: float) -> None:
    with httpx.Client(timeout=120.0) as client:
        while not is_over.wait(pause_s):
            began = time.monotonic()
            try:
                response = client.post(f"{url}/generate", json=body)
            except httpx.HTTPError as error:
                load.add(0, repr(error), 0.0)
                continue
            text = response.json()["text"] if response.status_code == 200 else response.text
            load.add(response.status_code, text, time.monotonic() - began)
