"""Artifacts and reports of a registry in MLflow: files of MLflow runs, checked by their hashes when they come back."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from rayloom.artifacts import Artifact, cache_root, open_artifact, storage
from rayloom.artifacts.manifest import MANIFEST_FILE
from rayloom.errors import RegistryError
from rayloom.registry import stages
from rayloom.registry.mlflow_client import Mlflow
from rayloom.registry.records import Report, Version
from rayloom.registry.refusals import other_artifact
from rayloom.registry.store import is_whole, located

_ARTIFACT, _REPORT = "artifact", "report.json"
_ONLY_MLFLOW = ("mlflow-artifacts", "http", "https")
"""Schemes of places that MLflow alone can read."""


class MlflowFiles:
    """Files of versions.

    Args:
        mlflow: Where they are.
    """

    def __init__(self, mlflow: Mlflow) -> None:
        self._mlflow = mlflow

    def upload(self, artifact: Artifact, model: str, digest: str) -> tuple[str, str]:
        """Keep an artifact as files of a new run; its manifest comes last.

        Returns:
            The run, and the artifact's place.
        """
        run_id = self._mlflow.new_run(f"{model}: {artifact.manifest.name}", {"rayloom.digest": digest})
        for name in [*artifact.manifest.files, MANIFEST_FILE]:
            folder = str(Path(_ARTIFACT, name).parent)
            self._mlflow.client.log_artifact(run_id, str(artifact.path / name), folder)
        self._mlflow.client.set_terminated(run_id)
        return run_id, self._mlflow.place_of(run_id, _ARTIFACT)

    def local(self, version: Version) -> str:
        """Folder or URI of a version's artifact that can be opened here.

        What only MLflow can read is copied to the cache once; anew if the copy is damaged.

        Raises:
            RegistryError: It is not the registered one.
            ArtifactError: It is gone.
        """
        run_id = self._run_to_ask(version)
        if run_id is None:
            return located(version)
        self.check(version)

        def build(folder: Path) -> None:
            with self._mlflow.told(), tempfile.TemporaryDirectory(dir=folder.parent) as part:
                shutil.copytree(self._mlflow.download(run_id, _ARTIFACT, Path(part)), folder, dirs_exist_ok=True)
            open_artifact(folder)  # every file's hash

        kept = cache_root() / "registry" / version.digest[:32]
        storage.renew_folder(kept, build, lambda: is_whole(kept, version.digest))
        return str(kept)

    def check(self, version: Version) -> None:
        """Refuse a version whose artifact is gone, or another than the registered one.

        Raises:
            RegistryError: It is.
        """
        run_id = self._run_to_ask(version)
        if run_id is None:
            stages.check_artifact(version)
            return
        with self._mlflow.told():
            content = self._mlflow.content(run_id, f"{_ARTIFACT}/{MANIFEST_FILE}")
        if hashlib.sha256(content).hexdigest() != version.digest:
            raise other_artifact(version)

    def keep_report(self, version: Version, content: bytes, metrics: Mapping[str, float]) -> Report:
        """A report as a file of a new run, its figures as that run's metrics."""
        with self._mlflow.told(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _REPORT
            path.write_bytes(content)
            run_id = self._mlflow.new_run(f"report of {version.name}", {"rayloom.version": version.name})
            self._mlflow.client.log_artifact(run_id, str(path))
            for name, value in metrics.items():
                self._mlflow.client.log_metric(run_id, name, value)
            self._mlflow.client.set_terminated(run_id)
        digest = hashlib.sha256(content).hexdigest()
        return Report(path=f"runs:/{run_id}/{_REPORT}", sha256=digest, metrics=dict(metrics))

    def report(self, version: Version) -> bytes:
        """The content of a version's report; nothing where it is gone."""
        assert version.report is not None
        run_id, _, name = version.report.path.removeprefix("runs:/").partition("/")
        with contextlib.suppress(RegistryError), self._mlflow.told():
            return self._mlflow.content(run_id, name)
        return b""

    def _run_to_ask(self, version: Version) -> str | None:
        """The run that holds the artifact, where only MLflow can read it."""
        if urlsplit(version.location).scheme not in _ONLY_MLFLOW:
            return None
        with self._mlflow.told():
            return str(self._mlflow.client.get_model_version(version.model, str(version.version)).run_id)
