from __future__ import annotations

import psutil
import pytest
import torch

from rayloom.training import Progress
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
    assert record.memory_bytes == other
    assert record.loss == 3.0
