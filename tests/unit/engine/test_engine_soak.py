"""20,000 random requests with random cancels through engines with real tensors: nothing leaks, memory stays flat."""

from __future__ import annotations

import contextlib
import gc
import random

import psutil
import pytest
import torch

from rayloom.engine import Engine, EngineOptions, open_engine
from rayloom.engine.events import Done
from rayloom.engine.request import EngineRequest, Params
from rayloom.errors import RequestError
from tests.unit.engine.runner_cases import VOCABULARY, tiny_model
from tests.unit.engine.test_runner_families import CONFIGS
from tests.unit.engine.test_scheduler import assert_empty

NUM_REQUESTS = 10_000
"""Of each family."""
MOST_GROWTH = 24 << 20


def drawn(draw: random.Random, *, seq2seq: bool) -> EngineRequest:
    kind = draw.choice(["greedy", "greedy", "sampled", "answers", "beams", "penalties"])
    fields: dict[str, object] = {
        "greedy": {},
        "sampled": {"do_sample": True, "seed": draw.randrange(1000), "top_k": 5, "temperature": 0.7},
        "answers": {"do_sample": True, "seed": draw.randrange(1000), "num_return_sequences": 3},
        "beams": {"num_beams": draw.choice([2, 3]), "num_return_sequences": 2},
        "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "logprobs": 2},
    }[kind]
    prompt = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 40)))
    if draw.random() < 0.2:
        prompt = (7,) * 33 + prompt[:5]  # a head that others have too
    params = Params(max_new_tokens=draw.randint(1, 24), eos_token_ids=(3,), **fields)  # type: ignore[arg-type]
    if seq2seq:
        return EngineRequest(start_ids=(0,), encoder_ids=prompt, params=params)
    return EngineRequest(start_ids=prompt, params=params)


def soak(engine: Engine, draw: random.Random, num_requests: int) -> int:
    """Returns how many were answered."""
    live: set[int] = set()
    added = answered = 0
    while added < num_requests or engine.has_work:
        for _ in range(draw.choice([0, 1, 3, 6]) if added < num_requests and len(live) < 40 else 0):
            with contextlib.suppress(RequestError):
                live.add(engine.submit(drawn(draw, seq2seq=engine.runner.seq2seq)))
                added += 1
        if live and draw.random() < 0.2:
            group = draw.choice(sorted(live))
            live.discard(group)
            engine.cancel(group)
        for event in engine.step():
            if isinstance(event, Done):
                live.discard(event.group_id)
                answered += 1
    assert not live
    assert_empty(engine._scheduler)
    return answered


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_nothing_leaks(family: str) -> None:
    torch.set_num_threads(1)
    shape = open_engine(tiny_model(CONFIGS[family]), EngineOptions(max_sequences=4)).runner.cache.shape
    options = EngineOptions(
        max_sequences=16, max_step_tokens=96, cache_bytes=shape.block_bytes * 18, debug=True, precision="fp32"
    )
    engine, draw = open_engine(tiny_model(CONFIGS[family]), options), random.Random(11)
    answered, objects, memory = 0, [], []
    for _ in range(5):
        answered += soak(engine, draw, NUM_REQUESTS // 5)
        gc.collect()
        objects.append(len(gc.get_objects()))
        memory.append(psutil.Process().memory_info().rss)
    assert answered > NUM_REQUESTS * 0.4  # the others were cancelled
    assert engine._scheduler.num_preempted > 5
    assert objects[-1] < objects[0] + 200, objects
    assert memory[-1] < memory[1] + MOST_GROWTH, memory
