"""What a client of `/generate` and `/answer` gets that asks for a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rayloom.serving.calls import Problem, Started
from rayloom.serving.responses import ErrorResponse
from rayloom.serving.sse import DONE
from rayloom.serving.streams import Tagged


class OwnEvents:
    """Pieces of text as ``{"index", "text"}``; then ``{"finish_reason", "usage", "model"}``, and `DONE`."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._reasons: dict[int, str] = {}
        self._num_tokens = 0

    def of(self, events: Sequence[Tagged]) -> Iterator[Any]:
        """See `Renderer`."""
        for _, event in events:
            if isinstance(event, Problem):
                yield ErrorResponse.of(event).model_dump()
            elif isinstance(event, Started):
                self._started = event
            else:
                self._num_tokens += event.num_tokens
                if event.finish_reason:
                    self._reasons[event.index] = event.finish_reason
                if event.text:
                    yield {"index": event.index, "text": event.text}

    def last(self) -> Iterator[Any]:
        """See `Renderer`."""
        started = self._started
        yield {
            "finish_reason": self._reasons.get(0, "stop"),
            "usage": {
                "prompt_tokens": started.prompt_tokens if started else 0,
                "completion_tokens": self._num_tokens,
            },
            "model": started.model if started else "",
        }
        yield DONE
