"""Connections that never become a request: their headers have no end, or come too slowly.

uvicorn, which is also what answers HTTP in Ray Serve's proxies, waits for ever and keeps all that comes. Serve calls
what its environment variable `CALLBACK` names in every proxy before that listens; `guard_proxy` then bounds uvicorn.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CALLBACK = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "rayloom.serving.connections.guard_proxy")
"""Environment variable of Serve's proxies, and its value."""
_FRAMING = 8
"""Bytes of chunk sizes and line ends that may come with a byte of a body."""


class TooMuchError(Exception):
    """A request has more, or longer, headers than are taken; httptools makes a parser error of it."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol for requests that are sent within a time, with headers of a size.

    Whatever is more ends with 400 and a closed connection, whatever takes longer with the latter.

    Attributes:
        headers_within_s: Seconds from a connection's, or another request's, begin until its headers are there.
        body_within_s: Seconds for the rest of a request.
        most_headers: Headers and trailers of a request.
        most_header_bytes: Path, headers and trailers of a request, together.
    """

    headers_within_s = 10.0
    body_within_s = 60.0
    most_headers = 128
    most_header_bytes = 64 * 1024

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: TimerHandle | None = None
        self._num_headers, self._num_header_bytes, self._num_unread = 0, 0, 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect(self.headers_within_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. A header that has not ended yet is known to nobody but the parser."""
        self._num_unread += len(data)
        super().data_received(data)
        if self._num_unread > self.most_header_bytes and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        super().on_message_begin()
        self._num_headers, self._num_header_bytes = 0, 0
        if self._timer is None:
            self._expect(self.headers_within_s)

    def on_url(self, url: bytes) -> None:
        """A piece of the path has come."""
        super().on_url(url)
        self._count(len(url), num_headers=0)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, has come."""
        self._count(len(name) + len(value), num_headers=1)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request can be dealt with; its body may take longer."""
        self._num_unread = 0
        self._expect(self.body_within_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._num_unread = max(self._num_unread - _FRAMING * len(body), 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole. What it waits for now is not its client."""
        self._num_unread = 0
        self._expect(None)
        super().on_message_complete()

    def _count(self, num_bytes: int, *, num_headers: int) -> None:
        self._num_headers += num_headers
        self._num_header_bytes += num_bytes
        if self._num_headers > self.most_headers or self._num_header_bytes > self.most_header_bytes:
            raise TooMuchError

    def _expect(self, within_s: float | None) -> None:
        """Close the connection unless this is called again in time; None to wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if within_s is None else self.loop.call_later(within_s, self.transport.close)


def guard_proxy() -> list[Middleware]:
    """Bound the connections of this process' uvicorn, a Serve proxy's. Serve asks for middleware; there is none."""
    auto.AutoHTTPProtocol = BoundedProtocol
    return []
