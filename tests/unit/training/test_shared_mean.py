from __future__ import annotations

import pytest
import torch.multiprocessing as mp

from rayloom.errors import TrainingError
from rayloom.training import shared_mean
from rayloom.training.shared_mean import Piece, SharedMean, chunks_of
from tests.unit.training import shared_ranks


@pytest.mark.parametrize(
    ("case", "world"), [("means", 3), ("trains_as_with_ddp", 2), ("apart", 2), ("without_memory", 2)]
)
def test_ranks_of_one_machine(case, world, tmp_path):
    (tmp_path / "memory").mkdir()
    mp.spawn(shared_ranks.enter, args=(world, str(tmp_path), case), nprocs=world)


def test_chunks_hold_all_elements_in_order():
    chunks = chunks_of([3, 0, 7, 2], 5)
    assert chunks == [
        [Piece(0, 0, 3, 0), Piece(2, 0, 2, 3)],
        [Piece(2, 2, 7, 0)],
        [Piece(3, 0, 2, 0)],
    ]


def test_a_rank_that_does_not_come_ends_the_wait(monkeypatch):
    monkeypatch.setattr(shared_mean, "_LATE_S", 0.05)
    monkeypatch.setattr(shared_mean.distributed, "world_size", lambda: 2)
    mean = SharedMean([], bytearray(shared_mean._BYTES))
    with pytest.raises(TrainingError, match="a worker did not come to the exchange"):
        mean._meet()
