"""The calls that Rayloom makes to MLflow's registry, and what they mean."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rayloom.config import MlflowConfig, validate
from rayloom.errors import RegistryError

EXPERIMENT = "rayloom-registry"
"""MLflow experiment whose runs hold artifacts and reports."""
_PAGE = 1000
_SCHEMES = ("http", "https", "sqlite")


class Mlflow:
    """A tracking server with its registry, or a SQLite database with files beside it.

    Args:
        uri: ``http(s)://…`` or ``sqlite:///…``.

    Raises:
        RegistryError: Another kind of URI, or mlflow is not installed.
    """

    def __init__(self, uri: str) -> None:
        if urlsplit(uri).scheme not in _SCHEMES:
            raise RegistryError(
                f"'mlflow+{uri}' is no registry: take mlflow+http(s)://… for a tracking server, or mlflow+sqlite:///… "
                "for a database with its files beside it. Other databases do not say where files go: put a server "
                "before them"
            )
        validate(MlflowConfig, {"uri": uri})
        self.uri = uri
        self.client = _open(uri)
        self._experiment_id: str | None = None

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """MLflow's errors as ours."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RegistryError(f"the MLflow registry {self.uri} cannot be used: {first}") from error

    def ensure_model(self, name: str, tags: Mapping[str, str]) -> None:
        """Make a registered model unless it is there, whoever is faster."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name, tags=dict(tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            for key, value in tags.items():  # somebody else's model becomes ours as well
                self.client.set_registered_model_tag(name, key, value)

    def models(self, tag: str) -> list[str]:
        """Names of all registered models that have a tag, in order."""
        found, token = list[Any](), None
        while True:
            page = self.client.search_registered_models(max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(each.name for each in found if tag in each.tags)

    def versions(self, name: str) -> list[Any]:
        """All versions of a registered model, oldest first."""
        found, token = list[Any](), None
        while True:
            page = self.client.search_model_versions(f"name = '{name}'", max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda each: int(each.version))

    def append(self, name: str, *, source: str, tags: Mapping[str, str], run_id: str | None = None) -> int:
        """Make the next version of a registered model. One transaction of MLflow's: it comes whole, with its number.

        Returns:
            The number.
        """
        made = self.client.create_model_version(name, source, run_id=run_id, tags=dict(tags), await_creation_for=0)
        return int(made.version)

    def aliases(self, name: str) -> dict[str, int]:
        """Versions by alias."""
        found = self.client.get_registered_model(name).aliases
        return {alias: int(version) for alias, version in found.items()}

    def new_run(self, name: str, tags: Mapping[str, str]) -> str:
        """A run to keep files with."""
        return str(self.client.create_run(self._experiment(), run_name=name, tags=dict(tags)).info.run_id)

    def place_of(self, run_id: str, name: str) -> str:
        """Where a file or folder of a run lies; a path where that is on this machine."""
        place = f"{str(self.client.get_run(run_id).info.artifact_uri).rstrip('/')}/{name}"
        parts = urlsplit(place)
        return unquote(parts.path) if parts.scheme == "file" else place

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """A file or folder of a run, copied below a folder."""
        return Path(self.client.download_artifacts(run_id, name, str(folder)))

    def content(self, run_id: str, name: str) -> bytes:
        """A small file of a run."""
        with tempfile.TemporaryDirectory() as folder:
            return self.download(run_id, name, Path(folder)).read_bytes()

    def _experiment(self) -> str:
        if self._experiment_id is None:
            known = self.client.get_experiment_by_name(EXPERIMENT)
            self._experiment_id = str(known.experiment_id) if known else self._new_experiment()
        return self._experiment_id

    def _new_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=_files_beside(self.uri)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(EXPERIMENT).experiment_id)


def _files_beside(uri: str) -> str | None:
    """A database's files lie beside it, whatever folder a process works in; a server knows its own place."""
    parts = urlsplit(uri)
    if parts.scheme != "sqlite":
        return None
    # sqlite:///relative.db and sqlite:////absolute.db
    database = Path(unquote(parts.path.removeprefix("/"))).absolute()
    return database.with_name(f"{database.stem}-artifacts").as_uri()


def _open(uri: str) -> Any:
    # By default a server that is down would be asked for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print addresses of runs between our lines, and into JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise RegistryError("a registry in MLflow needs its package: pip install 'rayloom[tracking]'") from None
    for name in ("mlflow", "alembic"):  # they would log a new database's every table
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
