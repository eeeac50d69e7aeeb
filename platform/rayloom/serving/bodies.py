"""Bodies that are too large, or come too slowly, are turned away before they are read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serving.calls import Problem
from rayloom.serving.openai.answers import error_body
from rayloom.serving.responses import ErrorResponse


class BodyLimit:
    """ASGI middleware: too large a body ends with 413, whether its size was announced or not, a slow one with 408.

    Args:
        app: What is protected.
        most: Bytes.
        within_s: Seconds from the headers to the body's end.
    """

    def __init__(self, app: ASGIApp, *, most: int, within_s: float) -> None:
        self._app, self._most, self._within_s = app, most, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._most:
            await _refuse(scope, send, self._too_large())
            return
        body = _Body(receive, self._most, self._within_s)

        async def watched(message: Message) -> None:
            if not (body.is_too_large or body.is_late):
                await send(message)

        await self._app(scope, body.receive, watched)
        if body.is_too_large:
            await _refuse(scope, send, self._too_large())
        elif body.is_late:
            problem = Problem(408, "timeout", f"the body did not come within {self._within_s:g} s")
            await _refuse(scope, send, problem)

    def _too_large(self) -> Problem:
        return Problem(413, "prompt_too_long", f"the body is too large; this server takes {self._most} bytes")


class _Body:
    """What a request receives, up to a limit and a deadline.

    Attributes:
        is_too_large: More came.
        is_late: It took longer.
    """

    def __init__(self, receive: Receive, most: int, within_s: float) -> None:
        self._receive, self._most = receive, most
        self._deadline = asyncio.get_running_loop().time() + within_s
        self._num_read, self._is_whole = 0, False
        self.is_too_large, self.is_late = False, False

    async def receive(self) -> Message:
        """As ASGI has it. What is raised here becomes an answer that is not sent."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.is_late = True
            raise
        self._num_read += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        self.is_too_large = self._num_read > self._most
        if self.is_too_large:
            raise ValueError("the body is too large")
        return message


async def _refuse(scope: Scope, send: Send, problem: Problem) -> None:
    is_openai = "/v1/" in scope["path"]
    body: Any = error_body(problem) if is_openai else ErrorResponse.of(problem).model_dump()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
