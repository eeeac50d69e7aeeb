from __future__ import annotations

import pytest
from pydantic import ValidationError

from rayloom.config import MlflowConfig, TrackingConfig


def test_nothing_is_tracked_unless_asked_for() -> None:
    tracking = TrackingConfig()
    assert (tracking.tensorboard, tracking.mlflow, tracking.wandb) == (False, None, None)


@pytest.mark.parametrize(
    "uri", [None, "runs/mlruns", "sqlite:///mlflow.db", "https://mlflow.example:5000", "databricks"]
)
def test_stores_of_all_kinds_are_taken(uri: str | None) -> None:
    assert MlflowConfig(uri=uri).uri == uri


@pytest.mark.parametrize("uri", ["https://me:secret@mlflow.example", "http://me@mlflow.example"])
def test_credentials_do_not_belong_into_a_config_that_is_published(uri: str) -> None:
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_USERNAME"):
        MlflowConfig(uri=uri)
