"""The state of runs, as ``rayloom runs`` shows it: one small file per run. Light: needs neither torch nor ray."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import fsspec
import psutil

from rayloom.errors import ConfigError
from rayloom.launch.tracking.folder import RunFolder

STATUS, HISTORY, NOTES, PAGE = "status.json", "history.jsonl", "notes.jsonl", "report.html"
STALE_S = 120.0
"""Seconds without a sign of life after which a driver on another machine counts as gone."""


@dataclass(frozen=True)
class RunStatus:
    """What a run was doing when it last wrote.

    Attributes:
        name: Of the run.
        state: ``running``, ``finished``, ``failed``, ``interrupted`` or ``unknown``.
        host: Machine of its driver.
        pid: Process of its driver.
        pid_started: When that process began, in seconds since 1970: numbers of processes are used again.
        updated: Last sign of life, in seconds since 1970.
        step: Optimizer steps done.
        total_steps: Of the whole run.
        epoch: Epochs done.
        loss: Of the last log line, per target token.
        metric: Validation metric that picks the best checkpoint.
        best: Its best value yet.
        best_step: Where that was.
        artifact: Place of the published artifact.
        error: What ended it.
    """

    name: str
    state: str = "unknown"
    host: str = ""
    pid: int = 0
    pid_started: float = 0.0
    updated: float = 0.0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    metric: str = ""
    best: float | None = None
    best_step: int = 0
    artifact: str | None = None
    error: str | None = None

    def judged(self, *, host: str, now: float) -> RunStatus:
        """With state ``interrupted`` where a run says that it is running and its driver is gone.

        Args:
            host: This machine.
            now: Seconds since 1970.
        """
        if self.state != "running":
            return self
        alive = process_started(self.pid) == self.pid_started if self.host == host else now - self.updated < STALE_S
        return self if alive else replace(self, state="interrupted")


def process_started(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None if there is none of that number."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def read_status(folder: RunFolder, name: str) -> RunStatus:
    """The state of a run; of one without a status file, what can be told from its artifact."""
    values = folder.read_json(STATUS)
    known = {field.name for field in fields(RunStatus)}
    if values:
        # A later version may have written more.
        return RunStatus(**{**{key: value for key, value in values.items() if key in known}, "name": name})
    finished = folder.read("artifact/manifest.json") is not None
    return RunStatus(name, state="finished" if finished else "unknown")


def write_status(folder: RunFolder, status: RunStatus) -> None:
    """Write it, with the time."""
    folder.write(STATUS, json.dumps(asdict(replace(status, updated=time.time()))))


def list_runs(storage_path: str) -> list[tuple[RunFolder, RunStatus]]:
    """All runs in a storage folder or URI, by name.

    Raises:
        ConfigError: There is no such place.
    """
    try:
        fs, root = fsspec.core.url_to_fs(storage_path)
        places = sorted(str(place).rstrip("/") for place in fs.ls(root, detail=False))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"'{storage_path}' holds no runs that can be read: {error}") from None
    names = [place.rsplit("/", 1)[-1] for place in places if fs.exists(f"{place}/config.yaml")]
    folders = [(RunFolder(f"{storage_path.rstrip('/')}/{name}"), name) for name in names]
    return [(folder, read_status(folder, name)) for folder, name in folders]


def read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """All records of a run by step; those of steps repeated after an interruption replace the earlier ones."""
    records = read_lines(folder, HISTORY)
    latest = {(record["kind"], record["step"]): record for record in records}
    return sorted(latest.values(), key=lambda record: (record["step"], record["kind"]))


def read_lines(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    """The values of a file with one JSON value a line; a line that a kill has cut is left out."""
    values = []
    for line in (folder.read(name) or "").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values
