"""Writes the run page as a run goes on, and keeps the notes that it shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rayloom.config import RunConfig, dump_yaml
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.page import RunView, run_page
from rayloom.launch.tracking.status import NOTES, PAGE, read_history, read_lines
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord, StepRecord


class PageKeeper:
    """Writes ``report.html`` at each evaluation and at the end. It spans all parts of a resumed run.

    Args:
        folder: Of the run.
        config: The resolved config.
        run_name: Of the run.
    """

    name = "the run page"

    def __init__(self, folder: RunFolder, config: RunConfig, *, run_name: str) -> None:
        self._folder, self._config, self._run_name = folder, config, run_name
        self._records: dict[tuple[str, int], dict[str, Any]] = {}
        self._notes: list[dict[str, str]] = []

    def start(self) -> None:
        """See `Tracker.start`."""
        self._records = {(record["kind"], record["step"]): record for record in read_history(self._folder)}
        self._notes = read_lines(self._folder, NOTES)

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`."""
        for event in events:
            if isinstance(event, Note):
                self._notes.append({"time": _now(), "text": event.text})
            else:
                self._records[_kind(event), event.step] = {"kind": _kind(event)} | asdict(event)
        if any(isinstance(event, Note) for event in events):
            self._folder.write(NOTES, "".join(json.dumps(note) + "\n" for note in self._notes))
        if any(isinstance(event, EvalRecord) for event in events):
            self._write(Outcome("finished"), state="running")

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`."""
        self._write(outcome, state=outcome.state)

    def _write(self, outcome: Outcome, *, state: str) -> None:
        view = RunView(
            name=self._run_name,
            subtitle=f"{state} · {self._config.model.name} · {self._config.model.task_type} · {_now()}",
            config_yaml=dump_yaml(self._config),
            history=[self._records[key] for key in sorted(self._records, key=lambda key: (key[1], key[0]))],
            notes=self._notes,
            artifact=outcome.artifact,
            error=outcome.error,
        )
        self._folder.write(PAGE, run_page(view))


def _kind(event: StepRecord | EvalRecord) -> str:
    return "step" if isinstance(event, StepRecord) else "evaluation"


def _now() -> str:
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
