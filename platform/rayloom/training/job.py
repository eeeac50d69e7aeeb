"""What is trained on what, and the plan of its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayloom.config import RunConfig
from rayloom.data import Dataset, GlobalBatch, plan_epoch
from rayloom.training import distributed
from rayloom.training.checkpoint import Progress
from rayloom.training.records import Validator


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        config: The run.
        train: Encoded train rows.
        validation: Encoded validation rows; may be empty.
        pad_token_id: Fills up rows of a batch.
        validator: Generates and scores; None for loss only.
        global_batch_size: Rows per optimizer step; None for what the config means.
    """

    config: RunConfig
    train: Dataset
    validation: Dataset
    pad_token_id: int
    validator: Validator | None = None
    global_batch_size: int | None = None

    def resumed(self, progress: Progress) -> Job:
        """The job with the global batch that the run began with, whatever number of workers goes on with it."""
        return replace(self, global_batch_size=progress.global_batch_size or None)

    @cached_property
    def lengths(self) -> npt.NDArray[np.integer[Any]]:
        """Input tokens of each train row."""
        return self.train.lengths

    @cached_property
    def target_counts(self) -> npt.NDArray[np.integer[Any]]:
        """Target tokens of each train row."""
        return self.train.target_counts

    @property
    def rows_per_step(self) -> int:
        """Train rows of one optimizer step, over all workers."""
        return self.global_batch_size or self.config.global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the train rows."""
        return math.ceil(len(self.train) / self.rows_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.steps_per_epoch * self.config.training.num_epochs
        return min(steps, self.config.training.max_steps or steps)

    def plan(self, epoch: int) -> Sequence[GlobalBatch]:
        """The batches of an epoch. Their rows are a pure function of data, seed, epoch and global batch size."""
        training = self.config.training
        return plan_epoch(
            self.lengths,
            self.target_counts,
            global_batch_size=self.rows_per_step,
            batch_size=training.batch_size,
            world_size=distributed.world_size(),
            seed=training.seed,
            epoch=epoch,
        )
