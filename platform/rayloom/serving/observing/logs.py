"""One line per request, as text or as JSON: no keys and no answers, and no prompts unless they are asked for."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from logging.handlers import WatchedFileHandler
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

from rayloom.errors import ConfigError
from rayloom.serving.calls import Prompt
from rayloom.serving.observing.metrics import first_tokens_s
from rayloom.serving.observing.records import Record

LogFormat = Literal["text", "json"]

logger = logging.getLogger("rayloom.requests")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class RequestLog:
    """Writes a line for each request.

    Args:
        shows_prompts: Whether the prompts are in it.
    """

    def __init__(self, *, shows_prompts: bool = False) -> None:
        self._shows_prompts = shows_prompts

    def write(self, record: Record) -> None:
        """Write the line of a request that has ended: a warning if the server failed, else information."""
        level = logging.WARNING if record.status >= 500 else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra=self._fields(record))

    def _fields(self, record: Record) -> dict[str, Any]:
        started, firsts = record.started, first_tokens_s(record)
        fields = {
            "request_id": record.request_id,
            "method": record.method,
            "route": record.route,
            "status": record.status,
            "duration_s": round(record.duration_s, 4),
            "key": record.key,
            "model": started.model if started else "",
            "adapter": started.adapter if started else "",
            "streamed": record.is_stream,
            "calls": len(record.calls),
            "prompt_tokens": record.prompt_tokens,
            "generated_tokens": record.generated_tokens,
            "queue_s": _longest(each.queued_s for each in record.timings),
            "first_token_s": _longest(firsts),
            "reason": record.reason,
            "client_gone": record.is_gone,
        }
        if self._shows_prompts:
            fields["prompts"] = [_plain(prompt) for prompt in record.prompts]
        return {name: value for name, value in fields.items() if value not in ("", None)}


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, and what comes along as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """See `logging.Formatter`."""
        more = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        told = "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in more.items())
        return super().formatMessage(record) + told


def json_formatter() -> logging.Formatter:
    """A JSON object per line: ``time``, ``level``, ``logger``, ``message``, and what comes along."""
    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        json_ensure_ascii=False,
    )


def write_logs(style: LogFormat, path: str | None) -> None:
    """Send this process's log of ours to a file, or to stderr (which Ray keeps among its logs), and nowhere else.

    Args:
        style: How lines look.
        path: The file; it may be moved away for rotation. None for stderr.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise ConfigError(f"log_file: {path} cannot be written: {error.strerror}; name another") from None
    handler.setFormatter(json_formatter() if style == "json" else TextFormatter())
    ours = logging.getLogger("rayloom")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _plain(prompt: Prompt) -> dict[str, Any]:
    """What was given of a prompt."""
    given = {name: value for name, value in dataclasses.asdict(prompt).items() if value}
    given.pop("raw", None)
    return given


def _longest(seconds: Any) -> float | None:
    longest = max(seconds, default=None)
    return None if longest is None else round(longest, 4)
