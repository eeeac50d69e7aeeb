from __future__ import annotations

import psutil
import pytest
import torch

from rayloom.training import Progress
from rayloom.training.checkpoint import Window
from rayloom.training.meter import Meter

CPU = torch.device("cpu")


def test_a_record_tells_the_memory_of_the_fullest_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    other = 1 << 45

    def of_two_ranks(values: list[float], device: torch.device) -> list[float]:
        loss, tokens, mine, theirs = values
        assert 0.2 < mine / psutil.Process().memory_info().rss < 5
        assert theirs == 0
        return [2 * loss, 2 * tokens, mine, other]

    monkeypatch.setattr("rayloom.training.distributed.world_size", lambda: 2)
    monkeypatch.setattr("rayloom.training.distributed.sum_over_ranks", of_two_ranks)
    meter = Meter(CPU, 10, start=Progress())
    meter.add(torch.tensor(6.0), tokens=5)
    meter.add_targets(4)
    record = meter.record(Progress(step=1, batch=1), 10, 1e-4, 1.0)
    assert record is not None
    assert record.memory_bytes == other
    assert record.loss == 3.0


@pytest.mark.parametrize(
    ("world_size", "rank", "expected"), [(2, 0, 3.0), (2, 1, 5.0), (1, 0, 8.0), (3, 0, 8.0), (3, 1, 0.0)]
)
def test_each_rank_goes_on_with_its_own_loss_and_other_workers_with_all_of_it(world_size, rank, expected) -> None:
    assert Window(2, (3.0, 5.0)).loss_of(rank, world_size) == expected


def test_what_no_record_has_told_goes_into_the_first_one_after_a_resumption() -> None:
    progress = Progress(step=7, batch=7, tokens=100, train_s=50.0)
    meter = Meter(CPU, 10, start=progress)
    meter.add(torch.tensor(6.0), tokens=5)
    meter.add_targets(2)
    saved = meter.updated(progress.moved(step=8))
    assert (saved.tokens, saved.window.losses, saved.window.steps) == (105, (6.0,), 1)
    assert saved.train_s == 50.0 + saved.window.seconds
    resumed = Meter(CPU, 10, start=saved)
    resumed.add(torch.tensor(4.0), tokens=7)
    resumed.add_targets(3)
    record = resumed.record(Progress(step=9, batch=9), 10, 1e-4, 1.0)
    assert record is not None
    assert record.loss == 2.0
    after = resumed.updated(Progress(step=9))
    assert (after.tokens, after.window) == (112, Window(losses=(0.0,)))
