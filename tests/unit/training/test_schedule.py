from __future__ import annotations

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from rayloom.config import TrainingConfig
from rayloom.training.schedule import learning_rate_at, warmup_steps

TOTAL, PEAK = 50, 3e-4


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_decay_equals_transformers(kind, theirs, warmup):
    config = TrainingConfig(learning_rate=PEAK, lr_scheduler=kind, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = theirs(optimizer, warmup, TOTAL)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Ours starts warm-up at 1/n, not at a lost step of 0: compare from its end on.
    ours = [learning_rate_at(step, config=config, total_steps=TOTAL) for step in range(TOTAL)]
    assert ours[warmup:] == pytest.approx(rates[warmup:])
    assert ours[:warmup] == pytest.approx([PEAK * (step + 1) / warmup for step in range(warmup)])


def test_constant_stays_at_the_peak_after_warm_up():
    config = TrainingConfig(learning_rate=PEAK, lr_scheduler="constant", warmup_ratio=0.1)
    assert warmup_steps(config, TOTAL) == 5
    assert {learning_rate_at(step, config=config, total_steps=TOTAL) for step in range(5, TOTAL)} == {PEAK}


def test_warm_up_is_never_longer_than_the_run():
    config = TrainingConfig(warmup_steps=1000)
    assert warmup_steps(config, TOTAL) == TOTAL
