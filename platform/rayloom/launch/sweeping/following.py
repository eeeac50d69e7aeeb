"""Keeps a sweep's state as Tune goes on, and says what happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ray import tune

from rayloom.launch.sweeping.orders import HANDOVER, SCORE, TRIAL
from rayloom.launch.sweeping.space import shown
from rayloom.launch.sweeping.state import Handover, Report, SweepState, TrialRecord, trial_number
from rayloom.launch.sweeping.trial import ERROR
from rayloom.launch.tracking.folder import RunFolder

Say = Callable[[str], None]


class Follower(tune.Callback):
    """Tune's callback in the driver: the only one who writes the sweep's state.

    Args:
        state: Of the sweep.
        metric: What decides.
        say: Takes a line for people.
    """

    def __init__(self, state: SweepState, metric: str, say: Say) -> None:
        self._state, self._metric, self._say = state, metric, say
        self._ended = {record.number for record in state if record.end}
        self._before: dict[int, float] = {}
        self.running: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores a copy of all that it is made of, to restore it; a sweep goes on from its own state instead."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on with other settings."""
        record = self._record(trial)
        self.running.add(record.number)
        self._before[record.number] = record.seconds
        values = trial.config[TRIAL]["values"]
        if record.values != values and record.number not in self._ended:
            record.values = dict(values)
            self._state.save()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported."""
        record = self._record(trial)
        if record.number in self._ended:
            return
        if result["run"] != record.run:
            self._handed_over(record, result["run"])
        record.seconds = self._before.get(record.number, 0.0) + result["seconds"]
        record.add(_report(result))
        if "artifact" in result:
            record.artifact, record.score, record.metrics = result["artifact"], result[SCORE], dict(result["metrics"])
        elif not math.isnan(result[SCORE]):
            self._say(f"{record.name}  step {result['steps']}  {self._metric} {result[SCORE]:.4f}")
        self._state.save()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, or was stopped by the scheduler."""
        record = self._record(trial)
        self.running.discard(record.number)
        if record.number in self._ended:
            return
        record.end = "finished" if record.artifact is not None else "stopped"
        record.error = None
        self._state.save()
        figure = f"  {self._metric} {record.score:.4f}" if record.score is not None else ""
        self._say(f"{record.name}  {record.end} at step {record.steps}{figure}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed and will be tried again."""
        record = self._failed(trial)
        self._say(f"{record.name}  failed, and is tried again: {_gist(record.error)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        record = self._failed(trial)
        record.end = "failed"
        self._state.save()
        self._say(f"{record.name}  failed for good: {_gist(record.error)}")

    def _record(self, trial: Any) -> TrialRecord:
        return self._state.begun(trial_number(str(trial)), trial.config[TRIAL]["values"])

    def _failed(self, trial: Any) -> TrialRecord:
        record = self._record(trial)
        self.running.discard(record.number)
        record.failures += 1
        record.error = self._state.folder.read(f"logs/{record.name}.{ERROR}") or "its process was lost"
        self._state.save()
        return record

    def _handed_over(self, record: TrialRecord, run: str) -> None:
        donor = str(RunFolder(f"{self._state.folder.path}/{run}").read_json(HANDOVER)["taken"])
        step = int(donor.rsplit("/", 1)[-1].split("-")[1])
        record.handovers.append(Handover(run, donor, step, dict(record.values)))
        settings = ", ".join(f"{key}={shown(value)}" for key, value in record.values.items())
        self._say(f"{record.name}  goes on from step {step} of {donor.split('/')[0]} with {settings}")


def _report(result: dict[str, Any]) -> Report:
    return Report(
        run=result["run"],
        step=int(result["steps"]),
        epoch=float(result["epochs"]),
        # At its end a trial tells the figures of its best checkpoint; curves want those of the last.
        metrics={name: float(value) for name, value in result.get("last", result["metrics"]).items()},
        checkpoint=result["checkpoint"],
    )


def _gist(text: str | None) -> str:
    return (text or "").strip().splitlines()[-1] if text else ""
