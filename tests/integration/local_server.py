"""The HTTP face over a real model in this process: uvicorn on loopback, no Ray."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

import uvicorn

from rayloom.serving.access import Access
from rayloom.serving.answering import answer, answer_in_parts, tokens_of
from rayloom.serving.calls import Call, Event, Figures, Health, ModelInfo, Outcome, Problem, TextCall, Tokens
from rayloom.serving.connections import BoundedProtocol
from rayloom.serving.limits import Limits
from rayloom.serving.protocols import ServedModel
from rayloom.serving.routes import create_app

LIMITS = Limits(request_timeout_s=60.0, max_prompt_chars=5000, max_sequences=8)


@dataclass
class LocalBackend:
    """A model of this process as the routes' backend."""

    served: ServedModel

    async def complete(self, call: Call) -> Outcome:
        return await answer(self.served, call)

    def stream(self, call: Call) -> AsyncGenerator[Event]:
        return answer_in_parts(self.served, call)

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        return tokens_of(self.served, call)

    async def models(self) -> Sequence[ModelInfo] | Problem:
        return [self.served.info]

    async def health(self) -> Health:
        return Health("ok", 1, self.served.info)

    async def figures(self) -> Sequence[Figures]:
        return [self.served.figures()]


@contextlib.contextmanager
def listening(
    served: ServedModel,
    limits: Limits = LIMITS,
    access: Access | None = None,
    protocol: type[BoundedProtocol] = BoundedProtocol,
) -> Iterator[str]:
    """The URL of a server that runs while the context lasts."""
    app = create_app(LocalBackend(served), limits, access=access)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", http=protocol)
    with running(config) as url:
        yield url


@contextlib.contextmanager
def running(config: uvicorn.Config) -> Iterator[str]:
    """The URL of a server, in a thread of its own while the context lasts."""
    server = uvicorn.Server(config)
    started = threading.Event()
    announce = server.startup

    async def startup(sockets: object = None) -> None:
        await announce(sockets)  # type: ignore[arg-type]
        started.set()

    server.startup = startup  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60.0), "uvicorn did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30.0)
