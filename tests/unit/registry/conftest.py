"""A place for registries in a real MLflow database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}", registry_uri=f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def place(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shared").mkdir()
    shutil.copyfile(empty_database, tmp_path / "shared" / "registry.db")
    place = f"mlflow+sqlite:///{tmp_path}/shared/registry.db"
    monkeypatch.setenv("RAYLOOM_REGISTRY", place)
    return place
