"""Server-sent events: JSON values on their way to a client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any, Protocol

from rayloom.serving.calls import Problem
from rayloom.serving.front import EventLists
from rayloom.serving.streams import Tagged

DONE = "[DONE]"
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
"""What JSON may leave as it is, and many clients (all that read by httpx's lines) take for the end of a line."""


class Renderer(Protocol):
    """Turns events into what a client gets: JSON values, and `DONE`."""

    def of(self, events: Sequence[Tagged]) -> Iterator[Any]:
        """What to send for events."""
        ...

    def last(self) -> Iterator[Any]:
        """What ends a stream without problems."""
        ...


async def written(lists: EventLists, renderer: Renderer) -> AsyncGenerator[str]:
    """The text of a stream; what has come together is written together."""
    async for events in lists.all():
        if text := _text(renderer.of(events)):
            yield text
        if events and isinstance(events[-1].event, Problem):
            return
    yield _text(renderer.last())


def _text(values: Iterable[Any]) -> str:
    return "".join(f"data: {value if value is DONE else _json(value)}\n\n" for value in values)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
