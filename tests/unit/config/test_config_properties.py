"""Values that configs derive."""

from __future__ import annotations

import pytest

from rayloom.config import DistributedConfig, TrainingConfig


@pytest.mark.parametrize(("values", "precision"), [({}, "fp32"), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp16")])
def test_precision(values: dict[str, bool], precision: str) -> None:
    assert TrainingConfig.model_validate(values).precision == precision


def test_only_loss_is_better_when_smaller() -> None:
    assert not TrainingConfig().larger_is_better
    assert TrainingConfig(metric_for_best="rougeL").larger_is_better


@pytest.mark.parametrize(
    ("values", "deepspeed", "stage"),
    [
        ({}, False, 0),
        ({"zero_stage": 0}, True, 0),
        ({"zero_stage": 2}, True, 2),
        ({"backend": "deepspeed"}, True, 0),
        ({"backend": "plain"}, False, 0),
    ],
)
def test_backend_follows_zero_stage(values: dict[str, object], deepspeed: bool, stage: int) -> None:
    config = DistributedConfig.model_validate(values)
    assert (config.uses_deepspeed, config.stage) == (deepspeed, stage)
