"""What has happened in a sweep, in its own folder: one JSON file that the driver alone writes.

Layout::

    sweep.yaml  base.yaml          what was asked for
    state.json                     all trials: settings, reports, how they ended
    trial-000/                     the run of a trial; trial-000.2/ once it has gone on from another's weights
    logs/trial-000.log             what the trial's process printed
    sweep.json  sweep.csv  sweep.html  best.yaml
    ray/                           Ray Tune's own
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from rayloom.errors import TrainingError
from rayloom.launch.tracking.folder import RunFolder

STATE = "state.json"
End = Literal["", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Report:
    """A validation of a trial whose checkpoint is safe.

    Attributes:
        run: Name of the run that made it: a trial has another one after each hand-over.
        step: Optimizer steps done.
        epoch: Epochs done.
        metrics: Validation figures.
        checkpoint: Folder of the checkpoint below the run's checkpoints; empty where none was kept.
    """

    run: str
    step: int
    epoch: float
    metrics: dict[str, float]
    checkpoint: str = ""


@dataclass(frozen=True)
class Handover:
    """A trial that has gone on from another's checkpoint.

    Attributes:
        run: The trial's run since then.
        donor: Run and folder of the checkpoint, such as ``trial-002/checkpoints/step-00000040-ab12cd34``.
        step: Steps of the checkpoint.
        values: The trial's settings since then.
    """

    run: str
    donor: str
    step: int
    values: dict[str, Any]


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        number: From 0.
        values: Its settings by dotted key; with PBT the latest.
        end: How it ended: ``stopped`` by the scheduler; empty while it goes on, or is interrupted.
        reports: Its validations in order.
        handovers: Where it has gone on from others.
        failures: How often it failed.
        error: What went wrong last.
        score: The metric at the checkpoint that the artifact is made of; of a stopped trial, the best reported.
        metrics: All figures of the artifact's checkpoint, and of training.
        artifact: Its place.
        seconds: Wall-clock time of all attempts' processes.
    """

    number: int
    values: dict[str, Any]
    end: End = ""
    reports: list[Report] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    failures: int = 0
    error: str | None = None
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    artifact: str | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Of the trial, and of its first run's folder."""
        return trial_name(self.number)

    @property
    def run(self) -> str:
        """Name of its latest run."""
        return self.handovers[-1].run if self.handovers else self.name

    @property
    def steps(self) -> int:
        """Where it has got to, in optimizer steps."""
        return self.reports[-1].step if self.reports else 0

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that it has done itself, as far as it has reported."""
        starts = {each.run: each.step for each in self.handovers}
        ends: dict[str, int] = {}
        for report in self.reports:
            ends[report.run] = max(ends.get(report.run, 0), report.step)
        return sum(max(0, end - starts.get(run, 0)) for run, end in ends.items())

    def add(self, report: Report) -> None:
        """Add a report; one of the same step takes the place of the earlier one."""
        kept = [each for each in self.reports if (each.run, each.step) != (report.run, report.step)]
        self.reports = [*kept, report]

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """From JSON."""
        known = {each.name for each in fields(cls)}
        record = cls(**{key: value for key, value in values.items() if key in known})
        record.reports = [Report(**each) for each in values.get("reports", [])]
        record.handovers = [Handover(**each) for each in values.get("handovers", [])]
        return record


class SweepState:
    """All trials of a sweep, on disk after each change.

    Args:
        folder: Of the sweep.

    Raises:
        TrainingError: What is on disk is damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.trials = {record.number: record for record in _stored(folder)}

    def __iter__(self) -> Iterator[TrialRecord]:
        return iter(self.trials[number] for number in sorted(self.trials))

    def begun(self, number: int, values: dict[str, Any]) -> TrialRecord:
        """The record of a trial; a new one is stored."""
        if number not in self.trials:
            self.trials[number] = TrialRecord(number, dict(values))
            self.save()
        return self.trials[number]

    def reopen_failed(self) -> None:
        """Let trials that failed for good go on from where they were, as those that were interrupted do."""
        for record in self:
            if record.end == "failed":
                record.end = ""
        self.save()

    def save(self) -> None:
        """Write all."""
        self.folder.write(STATE, json.dumps({"trials": [asdict(record) for record in self]}, indent=1))


def _stored(folder: RunFolder) -> list[TrialRecord]:
    text = folder.read(STATE)
    if text is None:
        return []
    try:
        return [TrialRecord.parse(each) for each in json.loads(text)["trials"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{folder.path}/{STATE} is damaged ({type(error).__name__}: {error}), so nobody knows which trials have "
            "ended: put a copy back, or give output.name another name to start anew"
        ) from error


def trial_name(number: int) -> str:
    """Such as ``trial-003``."""
    return f"trial-{number:03d}"


def run_name(trial: str, part: int) -> str:
    """Name of a trial's run, parts being counted from 1: ``trial-003``, ``trial-003.2``."""
    return trial if part == 1 else f"{trial}.{part}"


def trial_number(name: str) -> int:
    """The other way round."""
    return int(name.removeprefix("trial-"))
