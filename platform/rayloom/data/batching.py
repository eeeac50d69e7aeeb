"""Which rows go together: plans that are pure functions of lengths, seed and epoch.

A plan is the same on every rank, so no rank has to be told its rows, and a run resumes by counting batches. Which rows
an optimizer step takes, and in which order steps come, does not depend on the number of ranks: a run that goes on with
more or fewer of them sees every row once all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]] | Sequence[int]

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


def plan_epoch(  # noqa: PLR0913 - a pure function: all that decides the plan is an argument
    lengths: Ints,
    target_counts: Ints,
    *,
    global_batch_size: int,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[GlobalBatch]:
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
    return [
        GlobalBatch(_spread(rows, batch_size, world_size), int(target_counts[rows].sum()))
        for rows in _steps(lengths, global_batch_size, np.random.default_rng([seed, epoch]))
    ]


def _steps(lengths: npt.NDArray[Any], size: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """The rows of each step, those of one step sorted by length."""
    order = rng.permutation(len(lengths))
    num_full = len(order) - len(order) % size
    full, rest = order[:num_full], order[num_full:]
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, num_full, size * _BUCKET_GLOBAL_BATCHES):
        bucket = _by_length(full[start : start + size * _BUCKET_GLOBAL_BATCHES], lengths)
        batches += np.split(bucket, len(bucket) // size)
    shuffled = [batches[place] for place in rng.permutation(len(batches))]
    return [*shuffled, _by_length(rest, lengths)] if len(rest) else shuffled


def plan_evaluation(lengths: Ints, *, batch_size: int, world_size: int) -> list[tuple[MicroBatch, ...]]:
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
    rounds = [order[start : start + size] for start in range(0, len(order), size)]
    return [tuple(ranks[0] for ranks in _spread(rows, batch_size, world_size)) for rows in rounds]


def _by_length(rows: npt.NDArray[np.int64], lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _spread(rows: npt.NDArray[np.int64], batch_size: int, world_size: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """Deal out rows that are sorted by length, so that ranks have similar lengths at the same time."""
    accumulation = math.ceil(len(rows) / (batch_size * world_size))
    parts = np.array_split(rows, accumulation * world_size)
    filler = MicroBatch((int(rows[0]),), is_filler=True)
    micro = [MicroBatch(tuple(part.tolist())) if len(part) else filler for part in parts]
    return tuple(tuple(micro[step * world_size + rank] for step in range(accumulation)) for rank in range(world_size))
