"""Where an experiment keeps its runs and what it has measured: finished parts are not done again."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rayloom.errors import ArtifactError
from rayloom.launch.experiments.plan import Plan
from rayloom.launch.experiments.records import CellRecord, Trained
from rayloom.registry import manifest_digest

RecordT = TypeVar("RecordT", bound=BaseModel)


class ExperimentStore:
    """Records below one folder, each written whole or not at all.

    Args:
        root: The experiment's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def runs(self) -> Path:
        """Folder of the training runs."""
        return self.root / "runs"

    def trained(self, key: str) -> Trained | None:
        """A finished training, if its artifact still lies there as it was."""
        found = _read(Trained, self._trained_path(key))
        if found is None:
            return None
        try:
            return found if manifest_digest(found.artifact) == found.digest else None
        except ArtifactError:
            return None

    def keep_trained(self, key: str, trained: Trained) -> None:
        """Write a finished training down."""
        _write(self._trained_path(key), trained)

    def cell(self, key: str) -> CellRecord | None:
        """What is known of a cell."""
        return _read(CellRecord, self._cell_path(key))

    def keep_cell(self, key: str, record: CellRecord) -> None:
        """Write down what was found."""
        _write(self._cell_path(key), record)

    def records(self, plan: Plan) -> dict[str, CellRecord]:
        """All that is known of an experiment's cells, by their keys."""
        found = {cell.key: self.cell(cell.key) for cell in plan.cells}
        return {key: record for key, record in found.items() if record is not None}

    def is_done(self, key: str) -> bool:
        """Whether a cell has its figures; one that failed has not."""
        record = self.cell(key)
        return record is not None and record.error is None

    def _trained_path(self, key: str) -> Path:
        return self.root / "trained" / f"{key[:24]}.json"

    def _cell_path(self, key: str) -> Path:
        return self.root / "cells" / f"{key[:24]}.json"


def _read(kind: type[RecordT], path: Path) -> RecordT | None:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):  # of another version: done again
        return None


def _write(path: Path, record: BaseModel) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    part.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    os.replace(part, path)
