"""Calls that were lost with their replica are asked again, of another one."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from rayloom.serving.calls import Call, Event, Figures, Health, ModelInfo, Outcome, Problem, TextCall, Tokens
from rayloom.serving.protocols import Backend

logger = logging.getLogger(__name__)

_MOST_LOST = 4
"""A call that kills whoever answers it must not take down one replica after the other."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_T = TypeVar("_T")
_LOST = Problem(
    503, "not_ready", f"{_MOST_LOST} replicas were lost, one after the other, while they answered this", retry_after_s=5
)
_CUT = Problem(503, "not_ready", "the replica was lost in the middle of the answer; ask again", retry_after_s=1)


class ReplicaLostError(Exception):
    """The process that was to answer is gone, or cannot be reached. It has told nothing that counts."""


class Repeating:
    """A backend whose calls outlive replicas.

    A whole answer is asked for again; so is a stream of which nothing was told yet. One that was begun ends with a
    problem: its reader has a part already. Repeats have the seed of the first try, so that no sampled answer depends on
    which replica was lost. Nothing here ends them but the deadline of whoever asks, and four lost replicas.

    Args:
        inner: Where complete, stream and tokens may raise `ReplicaLostError`.
        pause_s: Seconds to wait after so many lost replicas; injected by tests.
        on_repeat: Called each time that a call is asked again.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        pause_s: Callable[[int], float] | None = None,
        on_repeat: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner, self._pause_s, self._on_repeat = inner, pause_s or _pause_s, on_repeat

    async def complete(self, call: Call) -> Outcome:
        """See `Backend`."""
        asked = seeded(call)
        return await self._repeated(lambda: self._inner.complete(asked))

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """See `Backend`."""
        return await self._repeated(lambda: self._inner.tokens(call))

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """See `Backend`."""
        call, num_lost = seeded(call), 0
        while True:
            has_told = False
            try:
                async with aclosing(self._inner.stream(call)) as events:
                    async for event in events:
                        if _is_turned_away(event, num_lost) and not has_told:
                            break
                        has_told = True
                        yield event
                    else:
                        return
            except ReplicaLostError:
                num_lost += 1
                if has_told or num_lost == _MOST_LOST:
                    yield _CUT if has_told else _LOST
                    return
            await self._wait(num_lost)

    async def models(self) -> Sequence[ModelInfo] | Problem:
        """See `Backend`."""
        return await self._repeated(self._inner.models)

    async def health(self) -> Health:
        """See `Backend`."""
        return await self._inner.health()

    async def figures(self) -> Sequence[Figures]:
        """See `Backend`."""
        return await self._inner.figures()

    async def _repeated(self, ask: Callable[[], Awaitable[_T | Problem]]) -> _T | Problem:
        num_lost = 0
        while True:
            try:
                found = await ask()
            except ReplicaLostError:
                num_lost += 1
                if num_lost == _MOST_LOST:
                    return _LOST
            else:
                if not _is_turned_away(found, num_lost):
                    return found
            await self._wait(num_lost)

    async def _wait(self, num_lost: int) -> None:
        self._on_repeat()
        logger.warning("a replica was lost; its call is asked again")
        await asyncio.sleep(self._pause_s(num_lost))


def seeded(call: Call) -> Call:
    """The call with a seed, so that it can be repeated; the caller's and the model's own go before it."""
    if call.parameters.get("seed") is not None or call.drawn_seed is not None:
        return call
    return replace(call, drawn_seed=secrets.randbits(63))


def _is_turned_away(told: object, num_lost: int) -> bool:
    """Whether a call that was let in once finds no room now: it has a right to wait for some."""
    return num_lost > 0 and isinstance(told, Problem) and told.type == "overloaded"


def _pause_s(num_lost: int) -> float:
    return min(_FIRST_PAUSE_S * 2.0**num_lost, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
