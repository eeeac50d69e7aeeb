"""The engine's face: submit, stream, cancel, from threads or from asyncio.

One thread steps the engine while there is work, and ends when it has been idle for a while, so that an engine
nobody refers to any more can be freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from typing import Protocol

from rayloom.engine.events import Done, Event, Failed
from rayloom.engine.request import EngineRequest, Hypothesis
from rayloom.engine.stats import EngineStats
from rayloom.errors import EngineError

logger = logging.getLogger(__name__)

_IDLE_S = 2.0


class Steps(Protocol):
    """What the service needs of an engine; only its own thread calls it."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def submit(self, request: EngineRequest) -> int:
        """Take a request; returns its id."""
        ...

    def cancel(self, group_id: int) -> None:
        """Drop a request, unless it is finished."""
        ...

    def step(self) -> list[Event]:
        """Compute one step."""
        ...

    def stats(self) -> EngineStats:
        """What it does now, and has done. The one method for any thread."""
        ...


class Ticket:
    """A submitted request.

    Args:
        service: Where it was submitted.
        listener: Takes the request's events on the engine's thread.
    """

    def __init__(self, service: EngineService, listener: Callable[[Event], None]) -> None:
        self._service, self._listener = service, listener
        self.group_id: int | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Free the request's place before the next step; its events end."""
        self._service.cancel(self)

    def tell(self, event: Event) -> None:
        """Hand an event over. Called on the engine's thread."""
        if not self.cancelled:
            self._listener(event)


class EngineService:
    """Runs an engine for callers on any thread.

    Args:
        engine: Stepped by this service alone.
    """

    def __init__(self, engine: Steps) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._arrivals: list[tuple[Ticket, EngineRequest]] = []
        self._leavers: list[Ticket] = []
        self._tickets: dict[int, Ticket] = {}
        self._thread: threading.Thread | None = None

    def submit(self, request: EngineRequest, listener: Callable[[Event], None]) -> Ticket:
        """Queue a request.

        Args:
            request: The request.
            listener: Takes its events, on the engine's thread; must not block. A refused request gets
                `Failed` with the `RequestError`.
        """
        ticket = Ticket(self, listener)
        with self._changed:
            self._arrivals.append((ticket, request))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return ticket

    def stats(self) -> EngineStats:
        """The engine at this moment; those that it has not seen yet are counted as waiting."""
        stats = self._engine.stats()
        return replace(stats, num_waiting=stats.num_waiting + len(self._arrivals))

    def cancel(self, ticket: Ticket) -> None:
        """See `Ticket.cancel`."""
        with self._changed:
            if not ticket.cancelled:
                ticket.cancelled = True
                self._leavers.append(ticket)
                self._changed.notify()

    def events(self, request: EngineRequest) -> Iterator[Event]:
        """Submit, and yield events up to `Done`. Abandoning the iterator cancels the request.

        Raises:
            RequestError: The request cannot be honoured.
            EngineError: The engine broke.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self.submit(request, events.put)
        return self._drain(ticket, events)

    def result(self, request: EngineRequest) -> tuple[Hypothesis, ...]:
        """Submit, and wait for the answers; see `events`."""
        for event in self.events(request):
            if isinstance(event, Done):
                return event.hypotheses
        raise AssertionError("events end with Done or an error")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Event]:
        """As `events`, for asyncio. Closing the generator, or cancelling its task, cancels the request."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        ticket = self.submit(request, _threadsafe(loop, events))
        try:
            while True:
                event = _checked(await events.get())
                yield event
                if isinstance(event, Done):
                    return
        finally:
            ticket.cancel()

    def _drain(self, ticket: Ticket, events: queue.SimpleQueue[Event]) -> Iterator[Event]:
        try:
            while True:
                event = _checked(events.get())
                yield event
                if isinstance(event, Done):
                    return
        finally:
            ticket.cancel()

    def _run(self) -> None:
        try:
            while self._next_work():
                try:
                    events = self._engine.step()
                except Exception as error:
                    logger.exception("an engine step failed; its requests fail with it")
                    self._fail_all(error)
                    continue
                for event in events:
                    self._deliver(event)
        except Exception as error:  # nobody may wait for a thread that is gone
            logger.exception("the engine's thread ends; the next request starts another")
            with self._changed:
                self._thread = None
            self._fail_all(error)

    def _deliver(self, event: Event) -> None:
        ticket = self._tickets.get(event.group_id)
        if ticket is None:
            return
        _tell(ticket, event)
        if isinstance(event, Done | Failed):
            del self._tickets[event.group_id]

    def _next_work(self) -> bool:
        """Let requests in and out; False after idling for long, when the thread ends."""
        with self._changed:
            if not (self._arrivals or self._leavers or self._engine.has_work):
                self._changed.wait(_IDLE_S)
            arrivals, self._arrivals = self._arrivals, []
            leavers, self._leavers = self._leavers, []
            if not (arrivals or leavers or self._engine.has_work):
                self._thread = None
                return False
        for ticket, request in arrivals:
            self._admit(ticket, request)
        for ticket in leavers:
            group_id = -1 if ticket.group_id is None else ticket.group_id
            if self._tickets.pop(group_id, None):
                self._engine.cancel(group_id)
        return True

    def _admit(self, ticket: Ticket, request: EngineRequest) -> None:
        try:
            ticket.group_id = self._engine.submit(request)
        except Exception as error:
            _tell(ticket, Failed(-1, error))
        else:
            self._tickets[ticket.group_id] = ticket

    def _fail_all(self, error: Exception) -> None:
        tickets, self._tickets = self._tickets, {}
        for group_id, ticket in tickets.items():
            failure = EngineError(f"the engine failed with {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._tickets[group_id] = ticket
            self._deliver(Failed(group_id, failure))
        for group_id in tickets:
            with contextlib.suppress(Exception):  # it is broken already, and the rest must go, too
                self._engine.cancel(group_id)


def _tell(ticket: Ticket, event: Event) -> None:
    try:
        ticket.tell(event)
    except Exception:  # its event loop is closed: nobody listens any more
        logger.exception("a listener failed; its request is dropped")
        ticket.cancel()


def _threadsafe(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]) -> Callable[[Event], None]:
    def put(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    return put


def _checked(event: Event) -> Event:
    if isinstance(event, Failed):
        raise event.error
    return event
