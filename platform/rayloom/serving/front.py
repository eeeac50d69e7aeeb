"""The way of every request to the model: bounds, deadlines, and clients that go away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

from rayloom.serving.access import key_of
from rayloom.serving.admission import Admission
from rayloom.serving.calls import (
    Call,
    Completion,
    ModelInfo,
    Outcome,
    Part,
    Problem,
    Prompt,
    Started,
    TextCall,
    Tokens,
)
from rayloom.serving.keys import ApiKey
from rayloom.serving.limits import Limits, refusal, too_long
from rayloom.serving.observing.records import Record, record_of
from rayloom.serving.protocols import Backend
from rayloom.serving.rates import Rates
from rayloom.serving.streams import Tagged, gathered, late
from rayloom.serving.waiting import ClientGoneError, unless_gone

logger = logging.getLogger(__name__)

TIMEOUT_HEADER = "X-Request-Timeout"
_T = TypeVar("_T")
_GONE = Problem(499, "timeout", "the client has gone")
"""Nobody reads it: the status is nginx's, for logs."""


@dataclass(frozen=True)
class Entry:
    """Calls that were let in.

    Attributes:
        calls: As the model gets them.
        timeout_s: Seconds that they have.
        key: Whose they are; None where no keys are asked for.
        record: Of the request.
    """

    calls: Sequence[Call]
    timeout_s: float
    key: ApiKey | None
    record: Record

    @property
    def owner(self) -> str:
        """Name of the key."""
        return self.key.name if self.key else ""


class Front:
    """Sends calls to the model.

    Args:
        backend: What writes the texts.
        limits: What a caller may ask for.
        rates: What the keys have used; nothing yet where not given.
    """

    def __init__(self, backend: Backend, limits: Limits, rates: Rates | None = None) -> None:
        self.backend, self.limits, self.rates = backend, limits, rates or Rates()
        self.admission = Admission(limits.max_in_flight)

    async def complete(self, request: Request, calls: Sequence[Call]) -> list[Completion] | Problem:
        """Whole answers to calls that belong together, or why there are none.

        Args:
            request: When its client goes away, the calls are dropped.
            calls: At least one.
        """
        entry = self._enter(request, calls)
        if isinstance(entry, Problem):
            return entry
        try:
            return await unless_gone(request, self._all(entry), entry.timeout_s)
        except TimeoutError:
            return late(entry.timeout_s)
        except ClientGoneError:
            return _GONE
        finally:
            self.leave(entry)

    async def stream(self, request: Request, calls: Sequence[Call]) -> EventLists | Problem:
        """As `complete`, part by part: the first list is there already, so that a problem still can be a status."""
        entry = self._enter(request, calls)
        if isinstance(entry, Problem):
            return entry
        entry.record.is_stream = True
        lists = gathered([self.backend.stream(call) for call in entry.calls], entry.timeout_s)
        started = EventLists(lists, self, entry)
        try:
            problem = await unless_gone(request, started.begin(), entry.timeout_s + 1.0)
        except (TimeoutError, ClientGoneError):
            problem = _GONE
        except BaseException:
            await started.aclose()
            raise
        if problem is None:
            return started
        await started.aclose()
        return self._timed(problem)

    async def tokens(self, request: Request, call: TextCall) -> Tokens | Problem:
        """Encode or decode. For a key, that is a request without tokens."""
        key = key_of(request)
        record_of(request).key = key.name if key else ""
        refused = too_long(call.prompt or Prompt(token_ids=call.token_ids), self.limits)
        if refused := refused or (self.rates.refusal(key, 1) if key else None):
            return refused
        if key:
            self.rates.charge_calls(key, 1)
        return await self._bounded(request, self.backend.tokens(call))

    async def models(self, request: Request) -> Sequence[ModelInfo] | Problem:
        """What is served."""
        return await self._bounded(request, self.backend.models())

    def charge(self, key: ApiKey | None, events: Iterable[Completion | Tagged]) -> None:
        """A key pays for what it has been told."""
        if key is not None and key.tokens_per_minute is not None:
            self.rates.charge_tokens(key, sum(map(_num_tokens, events)))

    def leave(self, entry: Entry) -> None:
        """Calls that were let in have ended."""
        self.admission.leave(len(entry.calls), entry.owner)

    def _enter(self, request: Request, calls: Sequence[Call]) -> Entry | Problem:
        """Let calls in, or say why they stay out."""
        timeout_s, key, record = self._timeout_s(request), key_of(request), record_of(request)
        record.enter(calls, key.name if key else "")
        if isinstance(timeout_s, Problem):
            return timeout_s
        refused = refusal(calls, self.limits) or (self.rates.refusal(key, len(calls)) if key else None)
        if refused := refused or self.admission.enter(len(calls), key.name if key else ""):
            return refused
        calls = [replace(call, sticky=call.user or (key.name if key else record.request_id)) for call in calls]
        if key is None:
            return Entry(calls, timeout_s, None, record)
        self.rates.charge_calls(key, len(calls))
        owned = [replace(call, owner=key.name, priority=key.priority) for call in calls]
        return Entry(owned, timeout_s, key, record)

    def _timeout_s(self, request: Request) -> float | Problem:
        """The server's time for an answer, or less if the client says so."""
        given = request.headers.get(TIMEOUT_HEADER)
        if given is None:
            return self.limits.request_timeout_s
        try:
            wanted_s = float(given)
        except ValueError:
            wanted_s = -1.0
        if not wanted_s > 0:
            return Problem(400, "invalid_request", f"{TIMEOUT_HEADER}: {given!r} is no number of seconds above 0")
        return min(wanted_s, self.limits.request_timeout_s)

    async def _bounded(self, request: Request, work: Coroutine[Any, Any, _T | Problem]) -> _T | Problem:
        """Wait for what writes nothing as long as for what does: its replicas may be busy, or not there yet."""
        timeout_s = self._timeout_s(request)
        if isinstance(timeout_s, Problem):
            work.close()
            return timeout_s
        try:
            found = await unless_gone(request, work, timeout_s)
        except TimeoutError:
            return Problem(504, "timeout", f"no answer within {timeout_s:g} s; try again later")
        except ClientGoneError:
            return _GONE
        return self._timed(found) if isinstance(found, Problem) else found

    async def _all(self, entry: Entry) -> list[Completion] | Problem:
        tasks = [asyncio.create_task(self._outcome(number, entry)) for number in range(len(entry.calls))]
        done: list[Completion] = []
        try:
            for task in tasks:
                outcome = await task
                if isinstance(outcome, Problem):
                    return self._timed(outcome)
                done.append(outcome)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return done

    async def _outcome(self, number: int, entry: Entry) -> Outcome:
        outcome = await self.backend.complete(entry.calls[number])
        if isinstance(outcome, Completion):
            self.charge(entry.key, [outcome])
            entry.record.complete(number, outcome)
        return outcome

    def _timed(self, problem: Problem) -> Problem:
        """An overload of the replicas says when to come back, too."""
        if problem.type != "overloaded" or problem.retry_after_s is not None:
            return problem
        return replace(problem, retry_after_s=self.admission.retry_after_s())


class EventLists:
    """Lists of events, as `gathered` gives them, whose first one is known.

    Args:
        lists: What `gathered` gives.
        front: Where the calls were let in.
        entry: The calls.
    """

    def __init__(self, lists: AsyncGenerator[list[Tagged]], front: Front, entry: Entry) -> None:
        self._lists, self._front, self._entry = lists, front, entry
        self._first: list[Tagged] = []
        self._is_open = True

    async def begin(self) -> Problem | None:
        """Wait for the first list; the problem, if it has one."""
        self._first = await anext(self._lists, [])
        self._note(self._first)
        problems = [each.event for each in self._first if isinstance(each.event, Problem)]
        return problems[0] if problems else None

    async def all(self) -> AsyncGenerator[list[Tagged]]:
        """All lists."""
        yield self._first
        async for each in self._lists:
            self._note(each)
            yield each

    def _note(self, events: list[Tagged]) -> None:
        self._front.charge(self._entry.key, events)
        self._entry.record.told(events)

    async def aclose(self) -> None:
        """Drop the calls that are not done."""
        if self._is_open:
            self._is_open = False
            self._front.leave(self._entry)
        await self._lists.aclose()


class EventStream(StreamingResponse):
    """Server-sent events. When the client goes away, the calls are dropped at once.

    Args:
        content: What is written.
        lists: Where it comes from.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[str], lists: EventLists) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._content, self._lists = content, lists

    async def stream_response(self, send: Send) -> None:
        """Write it all; close what it comes from in any case."""
        try:
            async with aclosing(self._content):
                await super().stream_response(send)
        finally:
            await self._lists.aclose()


def _num_tokens(told: Completion | Tagged) -> int:
    """Tokens of prompt and answer that are told of."""
    if isinstance(told, Completion):
        return told.started.prompt_tokens + told.completion_tokens
    if isinstance(told.event, Started):
        return told.event.prompt_tokens
    return told.event.num_tokens if isinstance(told.event, Part) else 0
