"""Which kind of registry a place means: a folder, or MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from rayloom.registry.store import Registry

MLFLOW = "mlflow+"


def open_registry(place: Path | str | None = None) -> Registry:
    """The registry at a place.

    Args:
        place: A folder; or ``mlflow+http(s)://…`` or ``mlflow+sqlite:///…`` for one in MLflow. ``$RAYLOOM_REGISTRY`` or
            ``~/.rayloom/registry`` where not given.

    Raises:
        RegistryError: It cannot be kept there.
    """
    chosen = str(place or os.environ.get("RAYLOOM_REGISTRY") or "")
    if chosen.startswith(MLFLOW):
        from rayloom.registry.mlflow_registry import MlflowRegistry

        return MlflowRegistry(chosen.removeprefix(MLFLOW))
    return Registry(place)
