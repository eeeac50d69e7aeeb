"""A trial as Ray Tune sees it: an actor that keeps the trial's process, and passes on what that reports.

Light on purpose: Tune starts one for each place where a trial can run. It holds no weights; what it saves and loads for
Tune is the place of a checkpoint.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from rayloom.launch.sweeping.orders import HANDOVER, SCORE, TRIAL, Order, TrialProcess, log_path
from rayloom.launch.sweeping.state import Report, run_name, trial_number
from rayloom.launch.tracking.folder import RunFolder

ERROR, POINTER = "error.txt", "pointer.json"


@dataclass(frozen=True)
class Spec:
    """What all trials of a sweep share.

    Attributes:
        sweep: Folder or URI of the sweep.
        base: The training config as JSON, without the settings of trials.
        metric: What decides.
        measured: Whether artifacts of finished trials are measured row by row.
        is_population: Whether trials take over from each other.
        waits: Whether trials wait after each validation for what the scheduler makes of it.
        cwd: Working folder of the sweep's driver.
        environment: What a trial's process gets to find the same Ray and the same code.
        ended: Reports of trials that have ended in an earlier session, by number; the last has ``done``.
    """

    sweep: str
    base: dict[str, Any]
    metric: str
    measured: bool
    is_population: bool
    waits: bool
    cwd: str
    environment: Mapping[str, str]
    ended: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)


class Trial(tune.Trainable):
    """See the module. Tune calls `step` for each result, and may save, restore and reset in between."""

    _number: int
    _run: str
    _process: TrialProcess | None
    _pointer: dict[str, str] | None
    _last: dict[str, Any]
    _replayed: deque[dict[str, Any]]

    def setup(self, config: dict[str, Any], spec: Spec | None = None) -> None:
        """Called once by Tune. ``config`` has the trial's settings."""
        assert spec is not None
        self._spec = spec
        self._begin()

    def step(self) -> dict[str, Any]:
        """The next report of the trial, or its end; blocks until there is one."""
        result = self._replayed.popleft() if self._number in self._spec.ended else self._listened()
        self._last = result
        return dict(result)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep where the trial's last checkpoint is."""
        text = json.dumps({"run": self._last["run"], "checkpoint": self._last["checkpoint"]})
        (Path(checkpoint_dir) / POINTER).write_text(text, encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take up what `save_checkpoint` kept: this trial's own, or after an exploit another's."""
        self._pointer = json.loads((Path(checkpoint) / POINTER).read_text(encoding="utf-8"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial."""
        del new_config  # Tune has put it into self.config
        self._end()
        self._begin()
        return True

    def cleanup(self) -> None:
        """End the trial's process."""
        self._end()

    def _begin(self) -> None:
        # An exploited trial has another's config, but its own name.
        self._number = trial_number(self.trial_name)
        self._process = None
        self._pointer = None
        self._last = {"run": self.trial_name, "checkpoint": ""}
        self._replayed = deque(self._spec.ended.get(self._number, []))
        self._seconds = 0.0

    def _end(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _listened(self) -> dict[str, Any]:
        start = time.monotonic()
        if self._process is None:
            self._process = self._started()
        told = self._process.listen()
        if told is None or "error" in told:
            raise self._failed(self._process.last_words() if told is None else told["error"])
        self._seconds += time.monotonic() - start
        return {**told, "run": self._run, "seconds": self._seconds}

    def _failed(self, reason: str) -> RuntimeError:
        RunFolder(self._spec.sweep).write(f"logs/{self.trial_name}.{ERROR}", reason)
        self._end()
        return RuntimeError(reason)

    def _started(self) -> TrialProcess:
        self._run, handover = chosen_run(self._spec.sweep, self.trial_name, self._pointer)
        order = Order(
            config=trial_config(self._spec, self.config[TRIAL]["values"], self._run),
            metric=self._spec.metric,
            measured=self._spec.measured,
            handover=handover,
            only_last=self._spec.is_population,
            waits=self._spec.waits,
        )
        return TrialProcess(
            order,
            log=log_path(self._spec.sweep, self.trial_name),
            folder=Path(self._spec.cwd) if Path(self._spec.cwd).is_dir() else Path.cwd(),
            environment=self._spec.environment,
        )


def chosen_run(sweep: str, trial: str, pointer: Mapping[str, str] | None) -> tuple[str, str | None]:
    """Which run of a trial goes on or begins, and from whose checkpoint it begins.

    A trial's own checkpoint means its latest run; another's a new run that begins with it, unless that is what the
    latest run began with (it failed since then).

    Args:
        sweep: Folder or URI of the sweep.
        trial: Name of the trial.
        pointer: What Tune restores: run and folder of a checkpoint.

    Returns:
        Name of the run; and ``<run>/checkpoints/<folder>`` or None.
    """
    part = 1
    while _begun(sweep, run_name(trial, part + 1)):
        part += 1
    latest = run_name(trial, part)
    began_with = RunFolder(f"{sweep}/{latest}").read_json(HANDOVER).get("donor")
    donor = None if pointer is None else f"{pointer['run']}/checkpoints/{pointer['checkpoint']}"
    if pointer is None or pointer["run"] == latest or donor == began_with:
        return latest, began_with
    fresh = run_name(trial, part + 1)
    RunFolder(f"{sweep}/{fresh}").write(HANDOVER, json.dumps({"donor": donor}))
    return fresh, donor


def _begun(sweep: str, run: str) -> bool:
    return RunFolder(f"{sweep}/{run}").read(HANDOVER) is not None


def trial_config(spec: Spec, values: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The training config of a trial as JSON: the process checks it."""
    config: dict[str, Any] = json.loads(json.dumps(spec.base))
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner[parent] = inner.get(parent) or {}
            inner = inner[parent]
        inner[last] = value
    config["output"] = {"storage_path": spec.sweep, "run_name": run}
    return config


def replay(
    reports: Sequence[Report], score_of: Callable[[Report], float], *, end: float | None
) -> list[dict[str, Any]]:
    """Reports of a trial that has ended, as `Trial.step` gives them; the last one with ``done``.

    Args:
        reports: Its validations in order.
        score_of: The figure that decides.
        end: The trial's score where its artifact has one.
    """
    results = [
        {
            "run": report.run,
            "steps": report.step,
            "epochs": report.epoch,
            "metrics": report.metrics,
            "checkpoint": report.checkpoint,
            SCORE: score_of(report),
            "seconds": 0.0,
        }
        for report in reports
    ]
    if results:
        results[-1] |= {"done": True} | ({} if end is None else {SCORE: end})
    return results
