"""The folder of a run: its resolved config, its history, its checkpoints and its artifact."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import yaml

from rayloom.config import RunConfig, dump_yaml, validate
from rayloom.errors import ConfigError
from rayloom.training import Identity
from rayloom.training.commits import identity_of

_CONFIG = "config.yaml"


class Run:
    """A run's place in its storage, a local folder or a URI.

    Args:
        storage_path: Absolute folder or URI.
        name: Name of the run.
    """

    def __init__(self, storage_path: str, name: str) -> None:
        self.storage_path, self.name = storage_path, name
        self.path = f"{storage_path.rstrip('/')}/{name}"
        check_place(storage_path, key="output.storage_path")
        self._fs, self._root = fsspec.core.url_to_fs(self.path)

    @classmethod
    def of(cls, config: RunConfig) -> Run:
        """The run that a config names, or a new dated one."""
        stored = config.output.storage_path
        if "://" not in stored:
            stored = str(Path(stored).expanduser().resolve())
        return cls(stored, config.output.run_name or dated_name(config))

    @property
    def artifact_path(self) -> str:
        """Where the finished artifact goes by default."""
        return f"{self.path}/artifact"

    @property
    def checkpoints_path(self) -> str:
        """Where the checkpoints are."""
        return f"{self.path}/checkpoints"

    def identity(self, config: RunConfig, data: str) -> Identity:
        """What decides the weights of this run, as hashes: checkpoints of another are never resumed.

        Args:
            config: The run's config.
            data: Hash of the encoded train rows.
        """
        return identity_of(config, data)

    def ray_storage(self) -> tuple[str, Any]:
        """Path and pyarrow file system for Ray's own state: it goes through fsspec, as all of the run does."""
        if self._is_local:
            return f"{self.path}/ray", None
        import pyarrow.fs

        return f"{self._root}/ray", pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))

    def exists(self) -> bool:
        """Whether a run of this name has been started."""
        return bool(self._fs.exists(f"{self._root}/{_CONFIG}"))

    def start(self, config: RunConfig) -> None:
        """Store the resolved config."""
        self._fs.makedirs(self._root, exist_ok=True)
        self._write(_CONFIG, dump_yaml(config))

    def require_same(self, config: RunConfig) -> None:
        """Refuse to resume with another config.

        Raises:
            ConfigError: There is no such run, or what decides its weights differs.
        """
        if not self.exists():
            raise ConfigError(f"there is no run '{self.name}' in {self.storage_path} to resume", key="output.run_name")
        place = Path(self._at(_CONFIG))
        try:
            stored = validate(RunConfig, yaml.safe_load(self._read(_CONFIG)), path=place)
        except yaml.YAMLError:
            raise ConfigError("the run's own config is damaged: start a new run", path=place) from None
        # Not `distributed`: a run goes on with the same batches on other workers, and at another ZeRO stage.
        for section in ("model", "dataset", "training", "lora"):
            old, new = getattr(stored, section), getattr(config, section)
            if old != new:
                raise ConfigError(
                    f"run '{self.name}' was started with another '{section}' section ({_difference(old, new)}): "
                    "resume with the same, or choose another output.run_name"
                )

    @property
    def _is_local(self) -> bool:
        return "://" not in self.path

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _read(self, name: str) -> str:
        with self._fs.open(self._at(name), "r", encoding="utf-8") as file:
            return str(file.read())

    def _write(self, name: str, text: str) -> None:
        with self._fs.open(self._at(name), "w", encoding="utf-8") as file:
            file.write(text)


def check_place(place: str, *, key: str) -> None:
    """Refuse a place that nothing can be written to, before anything costly starts.

    Args:
        place: Folder or URI.
        key: Config key that names it.

    Raises:
        ConfigError: A file, a folder that is write-protected, or storage of an unknown kind.
    """
    if "://" in place:
        try:
            fsspec.core.url_to_fs(place)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"'{place}': no access to this kind of storage: {error}", key=key) from None
        return
    path = Path(place).expanduser().absolute()
    above = next(folder for folder in (path, *path.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"'{place}': {above} is no folder that can be written to; choose another", key=key)


def dated_name(config: RunConfig) -> str:
    """Such as ``t5-small-question-answering-20260131-142500``."""
    model = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(config.model.name).stem or config.model.name).strip("-").lower()
    return f"{model}-{config.model.task_type}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _difference(old: Any, new: Any) -> str:
    if old is None or new is None:
        return f"{'nothing' if old is None else 'something'} before, {'nothing' if new is None else 'something'} now"
    before, after = old.model_dump(), new.model_dump()
    changed = [f"{key}: {before[key]!r} → {after[key]!r}" for key in before if before[key] != after[key]]
    return ", ".join(changed)
