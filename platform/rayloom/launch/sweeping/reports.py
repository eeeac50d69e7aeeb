"""From a run's events to reports: a validation is told once its checkpoint is safe, so that others can take it up."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import read_history
from rayloom.training import EvalRecord, StepRecord, Storage
from rayloom.training.commits import COMMIT, is_folder_name

_SAVED = re.compile(r"saved step (\d+)")

Told = dict[str, Any]


class Reports:
    """A `Sink` of a trial's run.

    The last validation is not told: it comes with the end of the run, when the artifact is there. A scheduler that
    heard of it before might stop a run that is done.

    Args:
        place: Folder or URI of the run.
        tell: Takes ``steps``, ``epochs``, ``metrics`` and the folder of the ``checkpoint``.
    """

    def __init__(self, place: str, tell: Callable[[Told], None]) -> None:
        self._place, self._tell = place, tell
        self._waiting: dict[int, EvalRecord] = {}
        self._total: int | None = None
        self._last: dict[str, float] | None = None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, StepRecord):
            self._total = event.total_steps
        elif isinstance(event, EvalRecord):
            self._waiting[event.step], self._last = event, event.metrics
        elif isinstance(event, Note):
            print(event.text, flush=True)  # noqa: T201 - the trial's log
            saved = _SAVED.fullmatch(event.text)
            record = self._waiting.pop(int(saved[1]), None) if saved else None
            if record is not None and record.step != self._total:
                self._report(record.step, record.epoch, record.metrics)

    @property
    def last(self) -> dict[str, float]:
        """Figures of the last validation, which is not always the best; empty if there was none."""
        if self._last is not None:
            return self._last
        past = [each for each in read_history(RunFolder(self._place)) if each["kind"] == "evaluation"]
        return dict(past[-1]["metrics"]) if past else {}

    def tell_past(self, *, only_last: bool) -> None:
        """Tell what an earlier attempt had validated: nobody may have heard.

        Args:
            only_last: The last one only.
        """
        safe = checkpoints(self._place)
        newest = max(safe, default=0)
        folder = RunFolder(self._place)
        past = [each for each in read_history(folder) if each["kind"] == "evaluation" and 0 < each["step"] <= newest]
        total = folder.read_json("status.json").get("total_steps")
        past = [each for each in past if each["step"] != total]
        for record in past[-1:] if only_last else past:
            self._report(record["step"], record["epoch"], record["metrics"])

    def _report(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        folder = checkpoints(self._place).get(step, "")
        self._tell({"steps": step, "epochs": epoch, "metrics": metrics, "checkpoint": folder})


def checkpoints(place: str) -> dict[int, str]:
    """Folders of a run's committed checkpoints by step."""
    storage = Storage(f"{place}/checkpoints")
    folders = [name for name in storage.folders() if is_folder_name(name)]
    return {int(name.split("-")[1]): name for name in folders if storage.read(f"{name}/{COMMIT}") is not None}
