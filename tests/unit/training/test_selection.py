from __future__ import annotations

import math

from rayloom.config import TrainingConfig
from rayloom.training.selection import Selection


def after(values, config):
    selection = Selection()
    for step, value in enumerate(values, start=1):
        selection = selection.after(value, step=step, config=config)
    return selection


def test_loss_is_best_when_smallest():
    assert after([3.0, 1.0, 2.0], TrainingConfig()) == Selection(best=1.0, best_step=2, evals_since_best=1)


def test_rouge_is_best_when_largest():
    config = TrainingConfig(metric_for_best="rougeL")
    assert after([0.1, 0.3, 0.2, 0.2], config) == Selection(best=0.3, best_step=2, evals_since_best=2)


def test_patience_counts_evaluations_without_enough_gain():
    config = TrainingConfig(early_stopping_patience=2, early_stopping_threshold=0.5)
    assert not after([3.0, 2.9], config).exhausted(config)
    assert after([3.0, 2.9, 2.8], config).exhausted(config)
    assert not after([3.0, 2.9, 2.0], config).exhausted(config)


def test_nan_never_wins():
    assert after([math.nan, 2.0, math.nan], TrainingConfig()).best == 2.0


def test_without_patience_training_never_stops_early():
    assert not after([1.0] + [2.0] * 20, TrainingConfig()).exhausted(TrainingConfig())
