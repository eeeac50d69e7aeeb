"""Watches every request from its first byte to its last, and tells metrics, log and traces of it."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serving.failures import path_of
from rayloom.serving.observing.logs import RequestLog
from rayloom.serving.observing.metrics import Metrics
from rayloom.serving.observing.records import STATE, Record, clean_id
from rayloom.serving.observing.traces import Spans
from rayloom.serving.paths import is_page

ID_HEADER = "X-Request-Id"

_PROBES = frozenset({"/health", "/ready", "/metrics"})


class Observer:
    """What is done with what was seen.

    Args:
        log: Writes a line for each request; none where not given.
        spans: Makes spans of each request; none where not given.
        returns_id: Whether answers carry `ID_HEADER`. Ray Serve's proxy sets it itself, from the same header.
    """

    def __init__(self, *, log: RequestLog | None = None, spans: Spans | None = None, returns_id: bool = True) -> None:
        self.metrics, self.log, self.spans, self.returns_id = Metrics(), log, spans, returns_id

    def telemetry(self) -> TelemetryConfig:
        """FastAPI's own switches: it makes the span of a request, and reports nothing else."""
        provider = self.spans.provider if self.spans else None
        return {
            "tracing": provider is not None,
            "tracer_provider": provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": is_quiet,
        }

    def begun(self, record: Record, path: str) -> None:
        """A request has come."""
        if path not in _PROBES:
            self.metrics.in_flight.inc()
        if self.spans:
            self.spans.begin(record)

    def ended(self, record: Record, path: str) -> None:
        """A request is over, however it ended."""
        is_probe = path in _PROBES
        if not is_probe:
            self.metrics.in_flight.dec()
        self.metrics.add(record)
        if self.spans:
            self.spans.add(record)
        if self.log and not (is_probe and record.status < 400):
            self.log.write(record)


class Watched:
    """ASGI middleware, the outermost: keeps a `Record` of each request.

    Args:
        app: What is watched.
        observer: Gets the records.
    """

    def __init__(self, app: ASGIApp, *, observer: Observer) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or is_page(path := path_of(scope)):
            await self._app(scope, receive, send)
            return
        record = Record(method=scope["method"], route=_known_route(scope, path))
        _take_id(record, scope)
        scope.setdefault("state", {})[STATE] = record
        self._observer.begun(record, path)
        try:
            await self._answer(record, scope, receive, send)
        except BaseException as error:
            _note_error(record, error)
            raise
        finally:
            record.duration_s = time.monotonic() - record.began_s
            record.route = getattr(scope.get("route"), "path", record.route)
            _note_status(record)
            self._observer.ended(record, path)

    async def _answer(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        is_done = False

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not is_done:
                record.is_gone = True
            return message

        async def told(message: Message) -> None:
            nonlocal is_done
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self._observer.returns_id:
                    named = (ID_HEADER.lower().encode(), record.request_id.encode())
                    message = {**message, "headers": [*message.get("headers", ()), named]}
            elif message["type"] == "http.response.body":
                is_done = not message.get("more_body", False)
            await send(message)

        await self._app(scope, heard, told)


def is_quiet(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is of no interest to traces: probes, and the page's own files."""
    path = path_of(scope)
    return path in _PROBES or is_page(path)


def _known_route(scope: Scope, path: str) -> str:
    """The path if it is one of ours: whatever else clients think of would be labels without end."""
    return path if any(getattr(route, "path", None) == path for route in scope["app"].routes) else "other"


def _take_id(record: Record, scope: Scope) -> None:
    given = [value for name, value in scope["headers"] if name == ID_HEADER.lower().encode()]
    if given and given[0]:
        record.request_id = clean_id(given[0].decode("latin-1"))


def _note_error(record: Record, error: BaseException) -> None:
    if isinstance(error, Exception) and not record.is_gone:
        record.status, record.reason = 500, "internal"


def _note_status(record: Record) -> None:
    """What is refused before a route is reached has a status and no more."""
    if record.status >= 400 and not record.reason:
        record.reason = "body_too_large" if record.status == 413 else f"status_{record.status}"
    if record.status == 0:
        record.is_gone, record.status = True, 499
