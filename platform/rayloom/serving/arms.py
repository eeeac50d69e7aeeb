"""Arms of a split: who belongs to which, what became of their calls, and the header that names them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serving.calls import Event, Outcome, Part, Problem
from rayloom.serving.observing.records import record_of

ARM_HEADER = "X-Rayloom-Arm"
_GONE = 499
"""Status of a call that nobody waited for any longer; nginx's."""


class ArmCall(NamedTuple):
    """A call to an arm that has ended.

    Attributes:
        route: Name that the caller used.
        arm: Model or adapter that answered.
        is_shadow: Whether it was a copy, whose answer nobody saw.
        status: As HTTP has it; 499 for one that was dropped.
        seconds: How long it took.
        num_tokens: Tokens written.
    """

    route: str
    arm: str
    is_shadow: bool
    status: int
    seconds: float
    num_tokens: int


class ArmObserver(Protocol):
    """Is told of every call to an arm."""

    def ended(self, call: ArmCall) -> None:
        """A call has ended. Must not fail, nor take long."""
        ...


def arm_of(route: str, split: Mapping[str, float], sticky: str) -> str:
    """The arm that somebody belongs to.

    Args:
        route: Name of the route: arms of different routes have nothing to do with each other.
        split: Arms and their shares, which sum up to 1.
        sticky: Who it is.
    """
    digest = hashlib.sha256(f"{route}\0{sticky}".encode()).digest()
    point = int.from_bytes(digest[:8]) / 2**64
    arms = [(arm, share) for arm, share in split.items() if share > 0.0]
    for arm, share in arms:
        if point < share:
            return arm
        point -= share
    return arms[-1][0]  # shares are floating-point numbers


class Watch:
    """Times one call to an arm.

    Args:
        observer: Is told of its end.
        route: See `ArmCall`.
        arm: See `ArmCall`.
        is_shadow: See `ArmCall`.

    Attributes:
        status: What is told of it, unless it is answered.
    """

    def __init__(self, observer: ArmObserver, route: str, arm: str, *, is_shadow: bool = False) -> None:
        self._observer, self._route, self._arm, self._is_shadow = observer, route, arm, is_shadow
        self._begun, self.status, self.num_tokens = time.monotonic(), _GONE, 0

    def answered(self, outcome: Outcome) -> None:
        """It has its outcome."""
        if isinstance(outcome, Problem):
            self.status = outcome.status
        else:
            self.status, self.num_tokens = 200, outcome.completion_tokens

    def told(self, event: Event) -> None:
        """It goes on."""
        if isinstance(event, Problem):
            self.status = event.status
        elif isinstance(event, Part):
            self.num_tokens += event.num_tokens

    def finished(self) -> None:
        """All is told; unless that was a problem, it is well."""
        self.status = 200 if self.status == _GONE else self.status

    def end(self) -> None:
        """It has ended, however it did. Called once."""
        seconds = time.monotonic() - self._begun
        self._observer.ended(ArmCall(self._route, self._arm, self._is_shadow, self.status, seconds, self.num_tokens))


class ArmHeader:
    """ASGI middleware: answers of a split say which arm they come from. Stands inside of `observing.Watched`.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(Request(scope))

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start" and record.started and record.started.arm:
                name = (ARM_HEADER.lower().encode(), record.started.arm.encode())
                message = {**message, "headers": [*message.get("headers", ()), name]}
            await send(message)

        await self._app(scope, receive, marked)
