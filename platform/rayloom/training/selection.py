"""Which checkpoint is best, and when to stop early. Pure bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rayloom.config import TrainingConfig


@dataclass(frozen=True)
class Selection:
    """The best evaluation so far.

    Attributes:
        best: Value of metric_for_best, None before the first evaluation.
        best_step: Step it was measured at.
        evals_since_best: Evaluations without an improvement.
    """

    best: float | None = None
    best_step: int = 0
    evals_since_best: int = 0

    def after(self, value: float, *, step: int, config: TrainingConfig) -> Selection:
        """The selection after one more evaluation. A value that is not a number never wins."""
        gain = 0.0 if self.best is None else value - self.best
        improved = gain > config.early_stopping_threshold
        if not config.larger_is_better:
            improved = -gain > config.early_stopping_threshold
        if (self.best is None and value == value) or improved:
            return Selection(best=value, best_step=step)
        return replace(self, evals_since_best=self.evals_since_best + 1)

    def exhausted(self, config: TrainingConfig) -> bool:
        """Whether training should stop early."""
        patience = config.early_stopping_patience
        return patience is not None and self.evals_since_best >= patience
