"""Keeps a run's status file up to date."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from rayloom.config import TrainingConfig
from rayloom.launch.progress import Event
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import RunStatus, process_started, read_status, write_status
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord, StepRecord

_LOCAL_S, _REMOTE_S = 1.0, 15.0


class StatusKeeper:
    """Writes ``status.json``: at the start, as steps go by (not at each), as a sign of life, and at the end.

    Args:
        folder: Of the run.
        name: Of the run.
        training: Names the metric that counts.
    """

    name = "the run's status"

    def __init__(self, folder: RunFolder, name: str, training: TrainingConfig) -> None:
        self._folder, self._training = folder, training
        self._status = RunStatus(name)
        self._every_s = _LOCAL_S if folder.is_local else _REMOTE_S
        self._written = 0.0

    def start(self) -> None:
        """See `Tracker.start`."""
        pid = os.getpid()
        before = read_status(self._folder, self._status.name)
        self._status = replace(
            before,
            state="running",
            host=socket.gethostname(),
            pid=pid,
            pid_started=process_started(pid) or 0.0,
            metric=self._training.metric_for_best,
            error=None,
        )
        self._write()

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`."""
        for event in events:
            self._status = self._after(event)
        if not events or time.monotonic() - self._written >= self._every_s:
            self._write()

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`."""
        self._status = replace(
            self._status, state=outcome.state, artifact=outcome.artifact or self._status.artifact, error=outcome.error
        )
        self._write()

    def _write(self) -> None:
        write_status(self._folder, self._status)
        self._written = time.monotonic()

    def _after(self, event: Event) -> RunStatus:
        status = self._status
        if isinstance(event, StepRecord):
            return replace(status, step=event.step, total_steps=event.total_steps, epoch=event.epoch, loss=event.loss)
        if isinstance(event, EvalRecord):
            value = event.metrics.get(self._training.metric_for_best)
            if value is not None and self._is_better(value, status.best):
                return replace(status, best=value, best_step=event.step)
        return status

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None or math.isnan(value):
            return not math.isnan(value)
        return value > best if self._training.larger_is_better else value < best
