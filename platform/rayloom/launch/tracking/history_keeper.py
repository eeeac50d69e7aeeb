"""Keeps a run's history: all its records, a line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import HISTORY
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import StepRecord


class HistoryKeeper:
    """Appends to ``history.jsonl``. Notes are the run page's to keep.

    Args:
        folder: Of the run.
    """

    name = "the run's history"

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def start(self) -> None:
        """See `Tracker.start`. There is nothing to open."""

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`. What is repeated after a failure is of the same step, and read once."""
        lines = [_line(event) for event in events if not isinstance(event, Note)]
        if lines:
            self._folder.append(HISTORY, "".join(lines))

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`. All is written already."""


def _line(record: Event) -> str:
    kind = "step" if isinstance(record, StepRecord) else "evaluation"
    return json.dumps({"kind": kind} | asdict(record)) + "\n"
