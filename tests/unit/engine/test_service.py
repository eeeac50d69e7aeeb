"""The engine's face over a pretended engine: who is told what, and that no thread is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rayloom.engine.events import Done, Event, NewToken
from rayloom.engine.request import EngineRequest, Hypothesis, Params
from rayloom.engine.service import EngineService
from rayloom.errors import EngineError, RequestError


@dataclass
class CountingEngine:
    """Gives each request the tokens 0, 1, 2 … up to its most; breaks where told."""

    live: dict[int, tuple[int, int]] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    broken_steps: int = 0
    broken_cancel: bool = False
    num_submitted: int = 0

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def submit(self, request: EngineRequest) -> int:
        if request.params.max_new_tokens > 10_000:
            raise RequestError("too long")
        self.num_submitted += 1
        self.live[self.num_submitted] = (0, request.params.max_new_tokens)
        return self.num_submitted

    def cancel(self, group_id: int) -> None:
        if self.broken_cancel:
            raise RuntimeError("cannot cancel")
        self.cancelled.append(group_id)
        self.live.pop(group_id, None)

    def step(self) -> list[Event]:
        if self.broken_steps:
            self.broken_steps -= 1
            raise RuntimeError("broken")
        events: list[Event] = []
        for group_id, (count, most) in list(self.live.items()):
            events.append(NewToken(group_id, 0, count))
            self.live[group_id] = (count + 1, most)
            if count + 1 == most:
                del self.live[group_id]
                events.append(Done(group_id, (Hypothesis(tuple(range(most)), "length"),)))
        return events


def asked(num_tokens: int) -> EngineRequest:
    return EngineRequest(start_ids=(1,), params=Params(max_new_tokens=num_tokens))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def test_many_threads_get_their_own_answers() -> None:
    service = EngineService(CountingEngine())
    found: dict[int, tuple[int, ...]] = {}

    def ask(size: int) -> None:
        found[size] = service.result(asked(size))[0].tokens

    threads = [threading.Thread(target=ask, args=(size,)) for size in range(1, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {size: tuple(range(size)) for size in range(1, 30)}


def test_a_refused_request_raises_what_the_engine_said_and_harms_nobody() -> None:
    service = EngineService(CountingEngine())
    with pytest.raises(RequestError, match="too long"):
        service.result(asked(20_000))
    assert service.result(asked(2))[0].tokens == (0, 1)


def test_an_abandoned_iterator_cancels() -> None:
    engine = CountingEngine()
    events = EngineService(engine).events(asked(9_999))
    assert next(events) == NewToken(1, 0, 0)
    events.close()
    wait_for(lambda: engine.cancelled == [1])


def test_a_broken_step_fails_its_requests_and_the_next_ones_work() -> None:
    engine = CountingEngine(broken_steps=1)
    service = EngineService(engine)
    with pytest.raises(EngineError, match="RuntimeError: broken") as caught:
        service.result(asked(3))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert service.result(asked(2))[0].tokens == (0, 1)


def test_nobody_waits_for_a_thread_that_died() -> None:
    engine = CountingEngine()
    service = EngineService(engine)
    others = service.events(asked(10_000))
    next(others)
    engine.broken_cancel = True
    abandoned = service.events(asked(9_999))
    next(abandoned)
    abandoned.close()
    with pytest.raises(EngineError, match="cannot cancel"):
        list(others)


def test_a_listener_that_fails_loses_only_its_own_request() -> None:
    engine = CountingEngine()
    service = EngineService(engine)

    def broken(event: Event) -> None:
        raise RuntimeError("event loop is closed")

    service.submit(asked(9_999), broken)
    assert service.result(asked(2))[0].tokens == (0, 1)
    wait_for(lambda: 1 in engine.cancelled)


def test_a_refusal_that_nobody_hears_harms_nobody() -> None:
    service = EngineService(CountingEngine())
    others = service.events(asked(10_000))
    next(others)

    def closed(event: Event) -> None:
        raise RuntimeError("event loop is closed")

    service.submit(asked(20_000), closed)
    assert len(list(others)) == 10_000


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back() -> None:
    service = EngineService(CountingEngine())
    service.result(asked(1))
    wait_for(lambda: not any(thread.name == "engine" and thread.is_alive() for thread in threading.enumerate()))
    assert service.result(asked(3))[0].tokens == (0, 1, 2)
