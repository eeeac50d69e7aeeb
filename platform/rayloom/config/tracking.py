"""Config of tracking: where the figures of a run go besides its own folder."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rayloom.config.base import Section


class MlflowConfig(Section):
    """An MLflow run. User name and password come from ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``."""

    uri: str | None = None
    """Tracking server (``http://…``), database (``sqlite:///…``) or folder; ``MLFLOW_TRACKING_URI`` where not given,
    and without that ``sqlite:///mlflow.db``."""
    experiment: str = Field("rayloom", min_length=1)
    """Experiment that the run belongs to; made if absent."""

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.scheme in ("http", "https") and parts.username is not None:
            # The resolved config is stored with the run and in the artifact.
            raise ValueError("leave user and password out: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return value


class WandbConfig(Section):
    """A Weights & Biases run. The key comes from ``WANDB_API_KEY`` or ``wandb login``."""

    project: str = Field("rayloom", min_length=1)
    """Project that the run belongs to; made if absent."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` writes to the run's folder, for ``wandb sync`` to upload later."""


class TrackingConfig(Section):
    """Trackers, any of them together. One that fails is dropped with a warning, and training goes on."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    mlflow: MlflowConfig | None = None
    wandb: WandbConfig | None = None
