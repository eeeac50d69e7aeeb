"""Which rows go together: plans that are pure functions of lengths, seed and epoch.

A plan is the same on every rank, so no rank has to be told its rows, and a run resumes by counting batches.
"""

from __future__ import annotations

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
        micro: Indexed [rank][accumulation step].
        num_targets: Positions that add to the loss, over all ranks and accumulation steps.
    """

    micro: tuple[tuple[MicroBatch, ...], ...]
    num_targets: int


def plan_epoch(  # noqa: PLR0913 - a pure function: all that decides the plan is an argument
    lengths: Ints,
    target_counts: Ints,
    *,
    batch_size: int,
    accumulation: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[GlobalBatch]:
    """The optimizer steps of one epoch: every row once, rows of similar length together.

    Only the last global batch may be smaller; its rows are spread evenly over ranks and accumulation steps.

    Args:
        lengths: Tokens of each row.
        target_counts: Positions of each row that add to the loss.
        batch_size: Rows of one micro-batch on one rank.
        accumulation: Micro-batches of each rank per optimizer step.
        world_size: Ranks.
        seed: Seed of the run.
        epoch: Epoch, from 0; each has its own order.
    """
    lengths, target_counts = np.asarray(lengths), np.asarray(target_counts)
    size = batch_size * accumulation * world_size
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    num_full = len(order) - len(order) % size
    full, rest = order[:num_full], order[num_full:]
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, num_full, size * _BUCKET_GLOBAL_BATCHES):
        bucket = _by_length(full[start : start + size * _BUCKET_GLOBAL_BATCHES], lengths)
        batches += np.split(bucket, len(bucket) // size)
    shuffled = [batches[place] for place in rng.permutation(len(batches))]
    if len(rest):
        shuffled.append(_by_length(rest, lengths))
    return [GlobalBatch(_spread(rows, accumulation, world_size), int(target_counts[rows].sum())) for rows in shuffled]


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
    return [tuple(ranks[0] for ranks in _spread(rows, 1, world_size)) for rows in rounds]


def _by_length(rows: npt.NDArray[np.int64], lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _spread(rows: npt.NDArray[np.int64], accumulation: int, world_size: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """Deal out rows that are sorted by length, so that ranks have similar lengths at the same time."""
    parts = np.array_split(rows, accumulation * world_size)
    filler = MicroBatch((int(rows[0]),), is_filler=True)
    micro = [MicroBatch(tuple(part.tolist())) if len(part) else filler for part in parts]
    return tuple(tuple(micro[step * world_size + rank] for step in range(accumulation)) for rank in range(world_size))
