"""Which rows go together: plans that are pure functions of lengths, seed and epoch.

A plan is the same on every rank, so no rank has to be told its rows, and a run resumes by counting batches. Which rows
an optimizer step takes, and in which order steps come, does not depend on the number of ranks: a run that goes on with
more or fewer of them sees every row once all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]] | Sequence[int]
Each = TypeVar("Each")

_BUCKET_GLOBAL_BATCHES = 50
"""Rows are sorted by length within shuffled stretches of so many global batches: little padding."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass on one rank.

    Args:
        rows: Indices into the dataset; never empty.
        is_filler: The rank has nothing to do: run the rows with weight 0, to keep step with the others.
    """

    rows: tuple[int, ...]
    is_filler: bool = False


@dataclass(frozen=True)
class GlobalBatch:
    """All rows of one optimizer step.

    Args:
        micro: Indexed [rank][accumulation step]; all ranks have equally many.
        num_targets: Positions that add to the loss, over all ranks and accumulation steps.
    """

    micro: tuple[tuple[MicroBatch, ...], ...]
    num_targets: int


class Plan(Sequence[Each], Generic[Each]):
    """Batches that are made when they are asked for: a plan of millions of rows is two arrays of numbers.

    Args:
        places: Which batches, by their number.
        make: Number to batch; a pure function.
    """

    def __init__(self, places: range, make: Callable[[int], Each]) -> None:
        self._places, self._make = places, make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Each: ...
    @overload
    def __getitem__(self, index: slice) -> Plan[Each]: ...
    def __getitem__(self, index: int | slice) -> Each | Plan[Each]:
        if isinstance(index, slice):
            return Plan(self._places[index], self._make)
        return self._make(self._places[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))


def plan_epoch(  # noqa: PLR0913 - a pure function: all that decides the plan is an argument
    lengths: Ints,
    target_counts: Ints,
    *,
    global_batch_size: int,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> Plan[GlobalBatch]:
    """The optimizer steps of one epoch: every row once, rows of similar length together.

    The rows of each step, and the order of steps, follow from the data, seed, epoch and global_batch_size alone;
    batch_size and world_size only decide how a step's rows are shared out. The last step may have fewer rows.

    Args:
        lengths: Tokens of each row.
        target_counts: Positions of each row that add to the loss.
        global_batch_size: Rows of one optimizer step, over all ranks.
        batch_size: Most rows of one micro-batch on one rank; each rank does as many as that takes.
        world_size: Ranks.
        seed: Seed of the run.
        epoch: Epoch, from 0; each has its own order.
    """
    lengths, target_counts = np.asarray(lengths), np.asarray(target_counts)
    rows_of, count = _steps(lengths, global_batch_size, np.random.default_rng([seed, epoch]))

    def make(step: int) -> GlobalBatch:
        rows = rows_of(step)
        return GlobalBatch(_spread(rows, batch_size, world_size), int(target_counts[rows].sum()))

    return Plan(range(count), make)


def _steps(
    lengths: npt.NDArray[Any], size: int, rng: np.random.Generator
) -> tuple[Callable[[int], npt.NDArray[np.int64]], int]:
    """The rows of a step by its number, sorted by length; and the number of steps."""
    numbers = np.int32 if len(lengths) < 2**31 else np.int64
    rows = rng.permutation(np.arange(len(lengths), dtype=numbers))
    num_full = len(rows) // size
    stretch = size * _BUCKET_GLOBAL_BATCHES
    for start in range(0, num_full * size, stretch):
        stop = min(start + stretch, num_full * size)
        rows[start:stop] = _by_length(rows[start:stop], lengths)
    rows[num_full * size :] = _by_length(rows[num_full * size :], lengths)
    order = rng.permutation(np.arange(num_full, dtype=numbers))

    def rows_of(step: int) -> npt.NDArray[np.int64]:
        start = size * int(order[step] if step < num_full else num_full)
        return rows[start : start + size].astype(np.int64)

    return rows_of, -(-len(rows) // size)


def plan_evaluation(lengths: Ints, *, batch_size: int, world_size: int) -> Plan[tuple[MicroBatch, ...]]:
    """Rounds of one micro-batch per rank, longest rows first (so that memory runs out at once or never).

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of one micro-batch.
        world_size: Ranks; all have equally many rounds.

    Returns:
        Rounds, each indexed by rank; every row is in exactly one micro-batch that is no filler.
    """
    lengths = np.asarray(lengths)
    order = _by_length(np.arange(len(lengths)), lengths)[::-1]
    size = batch_size * world_size

    def make(number: int) -> tuple[MicroBatch, ...]:
        rows = order[number * size : (number + 1) * size]
        return tuple(ranks[0] for ranks in _spread(rows, batch_size, world_size))

    return Plan(range(-(-len(order) // size)), make)


def _by_length(rows: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _spread(rows: npt.NDArray[np.int64], batch_size: int, world_size: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """Deal out rows that are sorted by length, so that ranks have similar lengths at the same time."""
    accumulation = math.ceil(len(rows) / (batch_size * world_size))
    parts = np.array_split(rows, accumulation * world_size)
    filler = MicroBatch((int(rows[0]),), is_filler=True)
    micro = [MicroBatch(tuple(part.tolist())) if len(part) else filler for part in parts]
    return tuple(tuple(micro[step * world_size + rank] for step in range(accumulation)) for rank in range(world_size))
