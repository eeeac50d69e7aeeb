"""20,000 random requests with random cancels: nothing leaks."""

import contextlib
import gc
import random

import pytest

from rayloom.engine.plan import Limits
from rayloom.errors import RequestError
from tests.unit.engine.pretend_engine import PretendEngine
from tests.unit.engine.test_scheduler import assert_empty, draw_request

NUM_REQUESTS = 20_000


def soak(engine: PretendEngine, draw: random.Random, num_requests: int, *, seq2seq: bool) -> None:
    added = 0
    while added < num_requests:
        for _ in range(draw.choice([0, 0, 1, 1, 2, 6])):
            if len(engine.live) < 60:
                with contextlib.suppress(RequestError):
                    engine.add(draw_request(draw, seq2seq=seq2seq))
                    added += 1
        if engine.live and draw.random() < 0.1:
            engine.cancel(draw.choice(sorted(engine.live)))
        engine.step()
    engine.run()
    assert_empty(engine.scheduler)


@pytest.mark.slow
@pytest.mark.parametrize("seq2seq", [False, True])
def test_soak(seq2seq: bool) -> None:
    draw = random.Random(1)
    limits = Limits(num_blocks=60, max_sequences=32, max_step_tokens=128, max_prefill_tokens=64)
    engine = PretendEngine(limits, seed=1, stop_rate=0.005, thorough=False, num_places=2)
    sizes = []
    for _ in range(4):
        soak(engine, draw, NUM_REQUESTS // 4, seq2seq=seq2seq)
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert engine.num_preempted > 100
    assert sizes[-1] < sizes[0] + 200, sizes
