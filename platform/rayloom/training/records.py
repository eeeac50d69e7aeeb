"""What training tells the outside, and the face it tells it to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from rayloom.training.checkpoint import Part, Progress


@dataclass(frozen=True)
class StepRecord:
    """Progress of training, every ``logging_steps`` steps.

    Attributes:
        step: Optimizer steps done.
        total_steps: Steps of the whole run.
        epoch: Epochs done, as a fraction.
        loss: Mean loss per target token since the last record, over all workers.
        learning_rate: Of the last step.
        grad_norm: Global gradient norm before clipping, of the last step.
        tokens_per_s: Real (non-pad) tokens per second since the last record, over all workers.
        eta_s: Seconds that the remaining steps will take at this speed.
        memory_bytes: Most memory that any worker holds: the peak of tensors on its GPU, else what is resident now.
        skipped_steps: Updates that this process left out because a loss or gradient was not finite.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    eta_s: float
    memory_bytes: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class EvalRecord:
    """Validation figures after an epoch: ``loss``, ``perplexity`` and those of the validator."""

    step: int
    epoch: int
    metrics: dict[str, float]
    samples: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Validation:
    """What a validator returns: metrics, equal on all ranks, and a few samples (rank 0)."""

    metrics: dict[str, float]
    samples: tuple[dict[str, str], ...] = ()


class Validator(Protocol):
    """Measures the model by generating, on all ranks together."""

    def __call__(self, model: nn.Module) -> Validation:
        """Generate and score; called on every rank with the same weights."""


class Reporter(Protocol):
    """Where training's news go. All ranks call `checkpoint`; the others only rank 0."""

    def stepped(self, record: StepRecord) -> None:
        """Speed and loss."""

    def evaluated(self, record: EvalRecord) -> None:
        """Validation figures."""

    def note(self, text: str) -> None:
        """A line for people: a skipped step, a loss that jumped."""

    def keep_file(self, path: Path) -> None:
        """Copy a file into the run's folder under its own name; it is gone when this returns."""

    def checkpoint(self, part: Part, progress: Progress, metrics: dict[str, float]) -> None:
        """Take over this rank's part of a checkpoint.

        Args:
            part: Its folder is removed when this returns; files may be moved out of it.
            progress: Where the run is.
            metrics: Validation figures of exactly these weights; empty if they were not evaluated.
        """
