"""Asks the service from within its own process, through the same door as everybody: keys, limits and books hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from rayloom.errors import ServiceError
from rayloom.serving.sse import DONE

Json = dict[str, Any]
_MOST_WAITING = 4
"""Messages on their way to a page that reads slowly; what comes beyond is joined to fewer, larger ones."""


class Asker:
    """A client of the service that needs no network.

    Args:
        app: The whole application, middleware included.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def get(self, path: str, secret: str | None) -> Json:
        """What is at a path.

        Args:
            path: Such as ``/v1/models``.
            secret: API key; None where none is asked for.

        Raises:
            ServiceError: With the service's own message.
        """
        async with self._asked("GET", path, None, secret) as exchange:
            return await exchange.json()

    async def events(self, path: str, body: Json, secret: str | None) -> AsyncGenerator[Json]:
        """The events of a stream, as they come. Closing the generator is going away: the model stops.

        Args:
            path: Such as ``/generate``.
            body: Its ``stream`` is true.
            secret: API key; None where none is asked for.

        Raises:
            ServiceError: The request is refused, or the stream ends with an error.
        """
        async with self._asked("POST", path, body, secret) as exchange:
            async for event in exchange.events():
                if "error" in event:
                    raise ServiceError(str(event["error"]["message"]))
                yield event

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, path: str, body: Json | None, secret: str | None) -> AsyncIterator[Exchange]:
        content = b"" if body is None else json.dumps(body).encode()
        exchange = Exchange(_scope(method, path, secret, len(content)), content)
        task = asyncio.create_task(exchange.run(self._app))
        try:
            yield exchange
        finally:
            exchange.leave()
            await asyncio.gather(task, return_exceptions=True)


class Exchange:
    """One request and its response, as ASGI messages.

    Args:
        scope: Of the request.
        content: Its body.
    """

    def __init__(self, scope: Scope, content: bytes) -> None:
        self._scope = scope
        self._requests: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        self._responses: asyncio.Queue[Message | None] = asyncio.Queue(_MOST_WAITING)
        self._gone = asyncio.Event()

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer."""
        try:
            await app(self._scope, self._receive, self._send)
        finally:
            await self._send(None)

    def leave(self) -> None:
        """The client goes away."""
        self._gone.set()
        while not self._responses.empty():
            self._responses.get_nowait()

    async def json(self) -> Json:
        """The body of a good answer.

        Raises:
            ServiceError: It is none.
        """
        await self._check()
        found: Json = json.loads(await self._body())
        return found

    async def events(self) -> AsyncGenerator[Json]:
        """The events of a good answer; see `json`."""
        await self._check()
        pending = b""
        async for piece in self._pieces():
            *lines, pending = (pending + piece).split(b"\n\n")
            for line in lines:
                text = line.removeprefix(b"data: ").decode()
                if text != DONE:
                    yield json.loads(text)

    async def _check(self) -> None:
        start = await self._responses.get()
        if start is None:
            raise ServiceError("the service did not answer; its log has the details")
        if start["status"] != 200:
            raise ServiceError(_message(await self._body(), start["status"]))

    async def _body(self) -> bytes:
        return b"".join([piece async for piece in self._pieces()])

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (message := await self._responses.get()) is not None:
            yield message.get("body", b"")

    async def _receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message | None) -> None:
        if not self._gone.is_set():
            await self._responses.put(message)


def _message(body: bytes, status: int) -> str:
    """What a body says that is no good answer."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the service answers with status {status}"


def _scope(method: str, path: str, secret: str | None, num_bytes: int) -> Scope:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(num_bytes).encode())]
    if secret is not None:
        headers.append((b"authorization", b"Bearer " + secret.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
    }
