"""Who made room for another owner's request goes on as if nothing had happened."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rayloom.engine import Engine, EngineOptions, open_engine
from rayloom.engine.events import Done, NewToken
from rayloom.engine.request import EngineRequest
from tests.unit.engine.runner_cases import tiny_model
from tests.unit.engine.test_engine_soak import drawn
from tests.unit.engine.test_runner_families import CONFIGS


def opened(family: str) -> Engine:
    """Blocks enough for all, so that none makes room for lack of them."""
    return open_engine(tiny_model(CONFIGS[family]), EngineOptions(max_sequences=6, precision="fp32", debug=True))


def outcome(done: Done) -> list[tuple[object, ...]]:
    return [(each.tokens, each.reason) for each in done.hypotheses]


def alone(engine: Engine, request: EngineRequest) -> list[tuple[object, ...]]:
    engine.submit(request)
    done: list[Done] = []
    while not done:
        done = [event for event in engine.step() if isinstance(event, Done)]
    return outcome(done[0])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_same_answers_as_alone(family: str) -> None:
    """One owner floods, others ask now and then: greedy, sampled, several answers and beams."""
    draw, engine = random.Random(5), opened(family)
    asked: dict[int, EngineRequest] = {}
    answers: dict[int, list[tuple[object, ...]]] = {}
    told: dict[int, dict[int, list[int]]] = {}
    single = opened(family)
    for step in range(300):
        owners = ["flood"] * (6 if step < 8 else 0) + (["calm"] if step % 7 == 0 and step < 80 else [])
        for owner in owners + (["rare"] if step in (15, 40, 60) else []):
            request = drawn(draw, seq2seq=engine.runner.seq2seq)
            asked[engine.submit(replace(request, owner=owner))] = request
        for event in engine.step():
            if isinstance(event, Done):
                answers[event.group_id] = outcome(event)
            elif isinstance(event, NewToken):
                told.setdefault(event.group_id, {}).setdefault(event.index, []).append(event.token)
    assert engine._scheduler.num_preempted > 3
    assert answers == {group: alone(single, request) for group, request in asked.items()}
    for group, texts in told.items():
        whole = [tuple(texts.get(index, ())) for index in range(len(answers[group]))]
        assert whole == [tokens for tokens, _ in answers[group]], "every token is told, and none twice"
