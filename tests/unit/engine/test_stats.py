"""What an engine tells of itself, and of how long its requests took."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rayloom.engine import Engine, EngineOptions, EngineService, open_engine
from rayloom.engine.events import Done, Timing
from rayloom.engine.plan import Limits
from rayloom.engine.request import EngineRequest, Params
from tests.unit.engine.runner_cases import tiny_model
from tests.unit.engine.test_runner_families import CONFIGS


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def runner_of() -> Engine:
    return open_engine(tiny_model(CONFIGS["gpt2"]), EngineOptions())


def engine_with(runner_of: Engine, clock: Clock, **limits: int) -> Engine:
    return Engine(runner_of.runner, Limits(num_blocks=16, **limits), clock=clock, debug=True)


def asked(num_prompt: int, num_new: int, **fields: object) -> EngineRequest:
    params = Params(max_new_tokens=num_new, **fields)  # type: ignore[arg-type]
    return EngineRequest(start_ids=tuple(range(5, 5 + num_prompt)), params=params)


def run(engine: Engine, clock: Clock) -> dict[int, Timing]:
    """Steps of a second each, until all is done."""
    timings: dict[int, Timing] = {}
    while engine.has_work:
        clock.now += 1.0
        for event in engine.step():
            if isinstance(event, Done):
                assert event.timing is not None
                timings[event.group_id] = event.timing
    return timings


def phases(timing: Timing) -> tuple[float, float, float, int]:
    return timing.queued_s, timing.prefill_s, timing.decode_s, timing.num_steps


def test_a_request_waits_for_a_place_then_reads_then_writes(runner_of: Engine) -> None:
    clock = Clock()
    engine = engine_with(runner_of, clock, max_sequences=1, max_step_tokens=8, max_prefill_tokens=8)
    first, second = engine.submit(asked(3, 4)), engine.submit(asked(20, 2))
    timings = run(engine, clock)
    # Seated in the first step, which gives its first token, too; three more steps.
    assert phases(timings[first]) == (1.0, 0.0, 3.0, 4)
    # 20 tokens of prompt, 8 a step: the third step gives a token, the fourth ends it.
    assert phases(timings[second]) == (5.0, 2.0, 1.0, 2)


@pytest.mark.parametrize("fields", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_several_sequences_are_one_request(runner_of: Engine, fields: dict[str, object]) -> None:
    clock = Clock()
    engine = engine_with(runner_of, clock, max_sequences=2)
    group = engine.submit(asked(3, 4, **fields))
    queued, prefill, decode, steps = phases(run(engine, clock)[group])
    assert (queued, prefill) == (1.0, 0.0)
    assert decode == 3.0
    assert steps == 4


def test_an_answer_that_ends_at_once_has_no_decoding(runner_of: Engine) -> None:
    clock = Clock()
    engine = engine_with(runner_of, clock, max_sequences=1)
    every_token = tuple(range(engine.runner.vocab_size))
    group = engine.submit(asked(3, 4, eos_token_ids=every_token))
    assert phases(run(engine, clock)[group]) == (1.0, 0.0, 0.0, 0)


def test_a_request_whose_time_passes_in_the_queue_was_queued_all_the_time(runner_of: Engine) -> None:
    clock = Clock()
    engine = engine_with(runner_of, clock, max_sequences=1)
    engine.submit(asked(3, 8))
    late = engine.submit(asked(3, 8, max_time=2.5))
    assert phases(run(engine, clock)[late]) == (3.0, 0.0, 0.0, 0)


def test_the_counts_follow_what_happens(runner_of: Engine) -> None:
    clock = Clock()
    engine = engine_with(runner_of, clock, max_sequences=2)
    service = EngineService(engine)
    for _ in range(3):
        engine.submit(asked(17, 4))
    before = service.stats()
    assert (before.num_running, before.num_waiting, before.num_used_blocks, before.num_steps) == (0, 3, 0, 0)
    assert (before.max_sequences, before.num_blocks) == (2, 16)
    engine.step()
    during = service.stats()
    assert (during.num_running, during.num_waiting, during.num_sequences) == (2, 1, 2)
    assert during.num_used_blocks > 0
    run(engine, clock)
    after = service.stats()
    assert (after.num_running, after.num_waiting, after.num_sequences, after.num_used_blocks) == (0, 0, 0, 0)
    assert after.num_idle_blocks > 0  # the head that all three have stays
    assert after.num_seated_tokens == 3 * 17
    assert 16 <= after.num_matched_tokens < after.num_seated_tokens
    assert after.num_preempted == 0
    assert after.num_steps > 4


def test_whoever_has_to_make_room_is_counted(runner_of: Engine) -> None:
    clock = Clock()
    engine = Engine(runner_of.runner, Limits(num_blocks=5, max_sequences=4), clock=clock, debug=True)
    groups = [engine.submit(EngineRequest(start_ids=(9 + place,) * 15, params=Params(max_new_tokens=40)))
              for place in range(2)]  # fmt: skip
    timings = run(engine, clock)
    assert engine.stats().num_preempted > 0
    assert all(timings[group].num_steps == 40 for group in groups)
    assert all(timings[group].queued_s < 5.0 for group in groups)  # until it was seated first, not last
