"""Who won: trials in order, which differences are within noise, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rayloom.config import Sweep
from rayloom.config.sweep import EVALUATION_PREFIX
from rayloom.evaluation.results import Significance, SplitResult
from rayloom.evaluation.summary import significance
from rayloom.evaluation.units import p_text
from rayloom.launch.sweeping.measuring import MEASURED
from rayloom.launch.sweeping.space import short_names, shown
from rayloom.launch.sweeping.state import SweepState, TrialRecord
from rayloom.launch.tracking.folder import RunFolder

Verdict = Literal["best", "within noise", "worse", "not tested", "stopped", "failed"]
_FEW = 4
"""Fewer trials than this say nothing about which setting matters."""


@dataclass(frozen=True)
class Ranked:
    """A trial in its place.

    Attributes:
        record: The trial.
        score: The figure that decides; of a stopped trial the best that it reported. None where it has none.
        verdict: Against the best.
        test: The paired test against the best, where both were measured row by row.
    """

    record: TrialRecord
    score: float | None
    verdict: Verdict
    test: Significance | None = None


@dataclass(frozen=True)
class Results:
    """A sweep's trials: finished ones by score, then stopped ones by how far they came, then failed ones.

    Attributes:
        sweep: What was asked for.
        trials: In order.
        influence: By key, Spearman's rank correlation of the setting with the figure that decides, at the first
            validation that all had; of numbers only.
    """

    sweep: Sweep
    trials: list[Ranked]
    influence: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> list[Ranked]:
        """Trials with an artifact, best first."""
        return [each for each in self.trials if each.record.end == "finished"]

    @property
    def best(self) -> Ranked:
        """The winner."""
        return self.trials[0]

    @property
    def metric(self) -> str:
        """What decides, without the prefix."""
        return self.sweep.config.metric.removeprefix(EVALUATION_PREFIX)

    @property
    def confidence(self) -> float:
        """Of the tests."""
        return self.sweep.base.evaluation.confidence

    def settings(self, record: TrialRecord) -> str:
        """A trial's settings in one line."""
        names = short_names(list(self.sweep.config.space))
        return ", ".join(f"{names[key]} {shown(record.values[key])}" for key in names)

    @property
    def headline(self) -> str:
        """Who won, how far ahead of the second, and whether that is more than noise."""
        best, others = self.best, self.finished[1:]
        text = f"{best.record.name} won: {self.metric} {best.score:.4f} with {self.settings(best.record)}."
        if not others:
            return f"{text} No other trial came to its end, so there is no second to compare with."
        close = [each.record.name for each in others[1:] if each.verdict == "within noise"]
        text = f"{text} {self._lead(best, others[0])}"
        if close:
            return f"{text} Within noise of the best too: {', '.join(close)}."
        if len(others) > 1 and all(each.verdict == "worse" for each in others):
            return f"{text} All others that finished are worse by more than noise, too."
        return text

    def _lead(self, best: Ranked, second: Ranked) -> str:
        assert best.score is not None
        assert second.score is not None
        margin = abs(best.score - second.score)
        lead = f"Ahead of the second, {second.record.name} with {second.score:.4f}, by {margin:.4f}"
        if second.test is None:
            return f"{lead}; whether that is noise was not tested."
        judged = "within noise" if second.verdict == "within noise" else "more than noise"
        return f"{lead}, which is {judged} (p {p_text(second.test.p_value)})."

    @property
    def counts(self) -> str:
        """How the trials ended, and what they took."""
        ends = [each.record.end for each in self.trials]
        steps = sum(each.record.trained_steps for each in self.trials)
        parts = [f"{ends.count(end)} {end}" for end in ("finished", "stopped", "failed") if end in ends]
        failures = sum(each.record.failures for each in self.trials)
        again = f", {failures} failures" if failures else ""
        return f"{len(ends)} trials: {', '.join(parts)}{again}; {steps:,} training steps"


def results_of(sweep: Sweep, state: SweepState) -> Results:
    """Rank all trials that have ended.

    Args:
        sweep: What was asked for.
        state: What has happened.
    """
    sign = 1.0 if sweep.config.direction == "min" else -1.0
    scored = [(record, score_of(sweep, record)) for record in state if record.end]

    def order(item: tuple[TrialRecord, float | None]) -> tuple[int, float, float, int]:
        record, score = item
        value = math.inf if score is None else sign * score
        group = ("finished", "stopped", "failed").index(record.end)
        return (group, value if group == 0 else -record.steps, value, record.number)

    scored.sort(key=order)
    measured = {record.number: _measured(state.folder, record) for record, _ in scored if record.end == "finished"}
    best = measured.get(scored[0][0].number) if scored else None
    trials = [
        _ranked(sweep, record, score, _test(sweep, measured.get(record.number), best), is_first=place == 0)
        for place, (record, score) in enumerate(scored)
    ]
    return Results(sweep, trials, _influence(sweep, state))


def score_of(sweep: Sweep, record: TrialRecord) -> float | None:
    """The figure that decides: of the artifact's checkpoint, or the best that a trial without one reported."""
    if record.score is not None:
        return record.score
    reported = [each.metrics[sweep.config.metric] for each in record.reports if sweep.config.metric in each.metrics]
    known = [value for value in reported if not math.isnan(value)]
    if not known:
        return None
    return min(known) if sweep.config.direction == "min" else max(known)


def _ranked(
    sweep: Sweep, record: TrialRecord, score: float | None, test: Significance | None, *, is_first: bool
) -> Ranked:
    if record.end in ("stopped", "failed"):
        return Ranked(record, score, "stopped" if record.end == "stopped" else "failed")
    if is_first:
        return Ranked(record, score, "best")
    if test is None:
        return Ranked(record, score, "not tested")
    is_noise = test.p_value >= 1 - sweep.base.evaluation.confidence
    return Ranked(record, score, "within noise" if is_noise else "worse", test)


def _measured(folder: RunFolder, record: TrialRecord) -> SplitResult | None:
    text = RunFolder(f"{folder.path}/{record.run}").read(MEASURED)
    return None if text is None else SplitResult.model_validate_json(text)


def _test(sweep: Sweep, split: SplitResult | None, best: SplitResult | None) -> Significance | None:
    if split is None or best is None or split is best:
        return None
    tests = significance(split, best, sweep.base.evaluation)
    return tests.get(sweep.config.metric.removeprefix(EVALUATION_PREFIX))


def _influence(sweep: Sweep, state: SweepState) -> dict[str, float]:
    """Settings are compared at the first report: there all trials are, whatever the scheduler did later."""
    metric = sweep.config.metric
    first: list[tuple[Mapping[str, Any], float]] = []
    for record in state:
        values = record.values
        score = next((each.metrics[metric] for each in record.reports if metric in each.metrics), record.score)
        if score is not None and math.isfinite(score):
            first.append((values, score))
    if len(first) < _FEW or sweep.config.scheduler.kind == "pbt":
        return {}
    scores = np.asarray([score for _, score in first])
    found = {}
    for key in sweep.config.space:
        column = [values[key] for values, _ in first]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
            rho = spearman(np.asarray(column, dtype=float), scores)
            if rho is not None:
                found[key] = rho
    return found


def spearman(one: Any, two: Any) -> float | None:
    """Rank correlation of two columns of numbers (N); None where one of them is constant."""
    ranks = [_ranks(np.asarray(each, dtype=float)) for each in (one, two)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values_N: Any) -> Any:  # noqa: N803 - shape letters
    """Ranks from 0; equal values share the mean of theirs."""
    order = np.sort(values_N)
    return (np.searchsorted(order, values_N, "left") + np.searchsorted(order, values_N, "right") - 1) / 2
