from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from rayloom.errors import TrainingError
from rayloom.training import shared_memory
from rayloom.training.shared_memory import PAGE_BYTES, SharedMemory, room_for
from rayloom.training.shared_update import pieces_of
from tests.unit.training import shared_ranks


@pytest.mark.parametrize(
    ("case", "world"),
    [
        ("updates", 3),
        ("goes_on_from_a_state", 2),
        ("skips_what_is_not_finite", 2),
        ("trains_as_with_ddp", 2),
        ("saves_and_loads", 2),
        ("apart", 2),
        ("without_memory", 2),
    ],
)
def test_ranks_of_one_machine(case, world, tmp_path):
    mp.spawn(shared_ranks.enter, args=(world, str(tmp_path), case), nprocs=world)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 7))
def test_each_element_has_one_rank(sizes, world):
    seen = [torch.zeros(size, dtype=torch.int) for size in sizes]
    shares = [pieces_of(sizes, rank, world) for rank in range(world)]
    for piece in (piece for share in shares for piece in share):
        assert piece.start < piece.stop or sizes[piece.index] == 0
        assert piece.start % 16 == 0
        seen[piece.index][piece.start : piece.stop] += 1
    assert all(bool((each == 1).all()) for each in seen)
    loads = [sum(piece.stop - piece.start for piece in share) for share in shares]
    assert max(loads) <= -(-sum(sizes) // world) + 16 * (len(sizes) + 1)


def test_tensors_of_shared_memory_do_not_touch(monkeypatch):
    shapes = ((torch.uint8, (3, 5)), (torch.float64, (2,)), (torch.float32, (PAGE_BYTES,)), (torch.float32, (1,)))
    size = room_for(torch.int64, 8) + sum(room_for(dtype, *shape) for dtype, shape in shapes)
    memory = SharedMemory(bytearray(size))
    tensors = [memory.take(dtype, *shape) for dtype, shape in shapes]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    assert all(bool((tensor == number + 1).all()) for number, tensor in enumerate(tensors))
    with pytest.raises(ValueError, match="buffer"):
        memory.take(torch.uint8, 1)


def test_a_rank_that_does_not_come_ends_the_wait(monkeypatch):
    monkeypatch.setattr(shared_memory, "_LATE_S", 0.05)
    monkeypatch.setattr(shared_memory.distributed, "world_size", lambda: 2)
    memory = SharedMemory(bytearray(room_for(torch.int64, 16)))
    with pytest.raises(TrainingError, match="a worker did not come to the exchange"):
        memory.meet()
