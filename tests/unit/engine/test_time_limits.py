"""What is answered when time is over, wherever a request is then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from rayloom.engine import Engine, EngineOptions, open_engine
from rayloom.engine.events import Done, Event, NewToken
from rayloom.engine.plan import Limits
from rayloom.engine.request import EngineRequest, Params
from tests.unit.engine.runner_cases import tiny_model
from tests.unit.engine.test_runner_families import CONFIGS
from tests.unit.engine.test_stats import Clock


@pytest.fixture(scope="module")
def opened() -> Engine:
    return open_engine(tiny_model(CONFIGS["gpt2"]), EngineOptions())


def engine_with(opened: Engine, clock: Clock) -> Engine:
    return Engine(opened.runner, Limits(num_blocks=64, max_sequences=4), clock=clock, debug=True)


def asked(*, owner: str = "", **fields: object) -> EngineRequest:
    params = Params(max_new_tokens=30, max_time=10.0, **fields)  # type: ignore[arg-type]
    return EngineRequest(start_ids=(5, 6, 7), params=params, owner=owner)


def done(events: list[Event]) -> dict[int, Done]:
    return {event.group_id: event for event in events if isinstance(event, Done)}


def test_who_never_ran_has_as_many_empty_answers_as_were_asked_for(opened: Engine) -> None:
    clock = Clock()
    engine = engine_with(opened, clock)
    group = engine.submit(asked(num_return_sequences=3, do_sample=True))
    clock.now += 11.0
    hypotheses = done(engine.step())[group].hypotheses
    assert [(each.tokens, each.reason) for each in hypotheses] == [((), "time")] * 3


def test_who_waits_again_has_what_was_told(opened: Engine) -> None:
    clock = Clock()
    engine = engine_with(opened, clock)
    flood = [engine.submit(asked(owner="flood", do_sample=True, seed=place, logprobs=1)) for place in range(4)]
    told: dict[int, list[int]] = {group: [] for group in flood}
    for step in range(8):
        if step == 4:
            for _ in range(2):
                engine.submit(asked(owner="calm"))
        for event in engine.step():
            if isinstance(event, NewToken) and event.group_id in told:
                told[event.group_id].append(event.token)
    assert engine._scheduler.num_preempted == 2
    assert [len(told[group]) for group in flood] == [8, 8, 4, 4]
    clock.now += 11.0
    answers = done(engine.step())
    for group in flood:
        (hypothesis,) = answers[group].hypotheses
        assert (list(hypothesis.tokens), hypothesis.reason) == (told[group], "time")
        assert hypothesis.logprobs is not None
        assert len(hypothesis.logprobs) == len(told[group])
    assert not engine.has_work


@dataclass
class SlowMasks:
    """A constraint that must be left alone while another thread makes its mask, as a grammar's parser must."""

    made: threading.Lock = field(default_factory=threading.Lock)

    def mask(self) -> npt.NDArray[np.uint32] | None:
        with self.made:
            time.sleep(0.1)
        return None

    def advance(self, token: int) -> None:
        assert not self.made.locked()

    def fork(self) -> SlowMasks:
        return SlowMasks()

    @property
    def is_over(self) -> bool:
        assert not self.made.locked(), "Already borrowed"
        return False


def test_nobody_asks_a_constraint_whose_mask_is_being_made(opened: Engine) -> None:
    clock = Clock()
    engine = engine_with(opened, clock)
    request = EngineRequest(
        start_ids=(5, 6), params=Params(max_new_tokens=9, max_time=10.0), constraints=(SlowMasks(),)
    )
    group = engine.submit(request)
    engine.step()
    time.sleep(0.02)  # the thread has begun
    clock.now += 11.0
    (hypothesis,) = done(engine.step())[group].hypotheses
    assert (len(hypothesis.tokens), hypothesis.reason) == (1, "time")
