"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from rayloom.config import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps of warm-up, from whichever of the two keys is given."""
    if config.warmup_ratio is not None:
        return math.ceil(config.warmup_ratio * total_steps)
    return min(config.warmup_steps or 0, total_steps)


def learning_rate_at(step: int, *, config: TrainingConfig, total_steps: int) -> float:
    """Learning rate of one optimizer step.

    Linear warm-up from zero, then linear, cosine or no decay to zero at total_steps.

    Args:
        step: Optimizer step, from 0.
        config: Peak rate, schedule and warm-up.
        total_steps: Steps of the whole run.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.lr_scheduler == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    remaining = 1.0 - done if config.lr_scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * remaining
