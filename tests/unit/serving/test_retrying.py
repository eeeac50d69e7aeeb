"""Calls that outlive replicas, over a backend that loses some."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayloom.serving.calls import Call, Completion, Event, Outcome, Part, Problem, Prompt, Started, TextCall, Tokens
from rayloom.serving.retrying import Repeating, ReplicaLostError, seeded
from tests.fakes_serving import FakeBackend

CALL = Call(Prompt("one two three"), {"max_new_tokens": 2})
FULL = Problem(429, "overloaded", "full")


@dataclass
class Losing(FakeBackend):
    """Loses its first calls: whole ones at once, streams after so many events; then has no room for some."""

    num_lost: int = 1
    told_before: int = 0
    num_full: int = 0
    seen: list[Call] = field(default_factory=list)

    def _lose(self) -> None:
        if self.num_lost:
            self.num_lost -= 1
            raise ReplicaLostError

    def _is_full(self) -> bool:
        self.num_full -= 1
        return self.num_full >= 0

    async def complete(self, call: Call) -> Outcome:
        self.seen.append(call)
        self._lose()
        return FULL if self._is_full() else await super().complete(call)

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        self.seen.append(call)
        if not self.told_before:
            self._lose()
        if self._is_full():
            yield FULL
            return
        num_told = 0
        async for event in super().stream(call):
            yield event
            num_told += 1
            if num_told == self.told_before:
                self._lose()

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        self._lose()
        return await super().tokens(call)


def repeating(inner: Losing, pauses: list[int] | None = None) -> Repeating:
    def pause_s(num_lost: int) -> float:
        if pauses is not None:
            pauses.append(num_lost)
        return 0.0

    return Repeating(inner, pause_s=pause_s)


def events_of(backend: Repeating) -> list[Event]:
    async def told() -> list[Event]:
        return [event async for event in backend.stream(CALL)]

    return asyncio.run(told())


def test_a_lost_call_is_asked_again_with_the_same_seed() -> None:
    inner, repeats = Losing(num_lost=2), list[str]()
    backend = Repeating(inner, pause_s=lambda num_lost: 0.0, on_repeat=lambda: repeats.append("again"))
    outcome = asyncio.run(backend.complete(CALL))
    assert isinstance(outcome, Completion)
    assert outcome.texts == ("ONE TWO",)
    assert repeats == ["again", "again"]
    first, *others = inner.seen
    assert first.drawn_seed is not None
    assert others == [first, first]


def test_a_callers_own_seed_stays() -> None:
    call = Call(Prompt("x"), {"seed": 0})
    assert seeded(call) is call
    drawn = [seeded(Call(Prompt("x"))) for _ in range(20)]
    assert len({call.drawn_seed for call in drawn}) == 20
    assert seeded(drawn[0]) is drawn[0]


def test_a_call_that_kills_its_replicas_is_given_up() -> None:
    inner, pauses = Losing(num_lost=99), list[int]()
    outcome = asyncio.run(repeating(inner, pauses).complete(CALL))
    assert isinstance(outcome, Problem)
    assert (outcome.status, outcome.type) == (503, "not_ready")
    assert len(inner.seen) == 4
    assert pauses == [1, 2, 3]


def test_who_was_let_in_waits_for_room_elsewhere_and_others_are_turned_away() -> None:
    inner = Losing(num_lost=1, num_full=10)
    assert isinstance(asyncio.run(repeating(inner).complete(CALL)), Completion)
    assert len(inner.seen) == 12
    assert asyncio.run(repeating(Losing(num_lost=0, num_full=1)).complete(CALL)) == FULL
    assert events_of(repeating(Losing(num_lost=0, num_full=1))) == [FULL]
    assert isinstance(events_of(repeating(Losing(num_lost=1, num_full=1)))[0], Started)


def test_a_stream_that_told_nothing_begins_again() -> None:
    inner = Losing(num_lost=3)
    started, *parts = events_of(repeating(inner))
    assert isinstance(started, Started)
    assert "".join(part.text for part in parts if isinstance(part, Part)) == "ONE TWO"
    assert len({call.drawn_seed for call in inner.seen}) == 1
    (problem,) = events_of(repeating(Losing(num_lost=99)))
    assert isinstance(problem, Problem)


def test_a_stream_that_was_begun_ends_with_a_problem() -> None:
    inner = Losing(num_lost=1, told_before=2)
    started, part, problem = events_of(repeating(inner))
    assert isinstance(started, Started)
    assert isinstance(part, Part)
    assert isinstance(problem, Problem)
    assert "in the middle of the answer" in problem.message
    assert len(inner.seen) == 1


def test_a_stream_that_nobody_reads_is_closed_to_the_bottom() -> None:
    inner = Losing(num_lost=0)

    async def leave() -> None:
        events: Any = repeating(inner).stream(CALL)
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert (inner.num_running, inner.num_cancelled) == (0, 1)


def test_tokens_are_asked_again() -> None:
    found = asyncio.run(repeating(Losing(num_lost=1)).tokens(TextCall(token_ids=(1,))))
    assert found == Tokens("w1", (1,), 64)


def test_the_deadline_ends_repeats() -> None:
    async def impatient() -> None:
        backend = Repeating(Losing(num_lost=99), pause_s=lambda _: 60.0)
        async with asyncio.timeout(0.01):
            await backend.complete(CALL)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
