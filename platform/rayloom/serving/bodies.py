"""Bodies that are too large are turned away before they are read."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serving.calls import Problem
from rayloom.serving.openai.answers import error_body
from rayloom.serving.responses import ErrorResponse


class BodyLimit:
    """ASGI middleware: a body larger than this ends with 413, whether its size was announced or not.

    Args:
        app: What is protected.
        most: Bytes.
    """

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._most:
            await self._refuse(scope, send)
            return
        num_read = 0

        async def counted() -> Message:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > self._most:
                raise ValueError("the body is too large")  # whatever is made of it, is not sent
            return message

        async def watched(message: Message) -> None:
            if num_read <= self._most:
                await send(message)

        await self._app(scope, counted, watched)
        if num_read > self._most:
            await self._refuse(scope, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        problem = Problem(413, "prompt_too_long", f"the body is too large; this server takes {self._most} bytes")
        is_openai = "/v1/" in scope["path"]
        body: Any = error_body(problem) if is_openai else ErrorResponse.of(problem).model_dump()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
