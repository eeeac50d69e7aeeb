"""The figures that a table may show: where each comes from, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayloom.config import ExperimentConfig, nearest
from rayloom.errors import ConfigError
from rayloom.evaluation.measures import SMALLER_IS_BETTER
from rayloom.evaluation.results import Resources, SplitResult
from rayloom.evaluation.units import METRICS, NEUTRAL, count, duration, label, metric_text, shown_value, size
from rayloom.launch.experiments.records import CellRecord, Trained


@dataclass(frozen=True)
class Value:
    """A figure, with the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """A figure that a table may show.

    Attributes:
        label: Head of the column.
        text: A value as people read it.
        is_quality: Told by evaluation; the best row may be chosen by it.
        smaller_is_better: Which way is up.
        scale: From the value to what a plot shows.
        axis: Label of a plot's axis.
    """

    label: str
    text: Callable[[float], str]
    is_quality: bool = False
    smaller_is_better: bool = True
    scale: Callable[[float], float] = float
    axis: str = ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _gib(value: float) -> float:
    return value / 2**30


_TRAINING: dict[str, tuple[str, Column]] = {
    "train_s": ("train_s", Column("training time", duration, axis="training time, seconds")),
    "train_tokens_per_s": ("train_tokens_per_s", Column("training tokens/s", _rate, smaller_is_better=False)),
    "train_tokens": ("train_tokens", Column("tokens trained on", _whole)),
    "train_steps": ("step", Column("steps", _whole)),
    "train_peak_bytes": (
        "peak_host_bytes",
        Column("peak memory of a worker", lambda value: size(int(value)), scale=_gib, axis="peak memory, GiB"),
    ),
    "train_peak_gpu_bytes": (
        "peak_gpu_bytes",
        Column("peak GPU memory", lambda value: size(int(value)), scale=_gib, axis="peak GPU memory, GiB"),
    ),
    "validation_loss": ("loss", Column("validation loss", _loss)),
}
"""By name: the figure of `TrainOutcome.metrics`, and how it is shown."""

_COSTS: dict[str, tuple[Callable[[SplitResult, Resources], float | None], Column]] = {
    "answer_s": (
        lambda split, _: split.seconds / len(split.predictions) if split.seconds and split.predictions else None,
        Column("time per answer", duration, axis="time per answer, seconds"),
    ),
    "latency_p50_s": (lambda _, cost: cost.latency_p50_s, Column("latency p50", duration, axis="latency p50, seconds")),
    "latency_p95_s": (lambda _, cost: cost.latency_p95_s, Column("latency p95", duration, axis="latency p95, seconds")),
    "tokens_per_s": (
        lambda _, cost: max((point.tokens_per_s for point in cost.throughput), default=None),
        Column("tokens/s", _rate, smaller_is_better=False, axis="generated tokens per second"),
    ),
    "peak_bytes": (
        lambda _, cost: cost.peak_gpu_bytes or cost.peak_host_bytes,
        Column("peak memory", lambda value: size(int(value)), scale=_gib, axis="peak memory, GiB"),
    ),
    "disk_bytes": (
        lambda _, cost: cost.size_on_disk_bytes,
        Column("on disk", lambda value: size(int(value)), scale=_gib, axis="GiB on disk"),
    ),
    "parameters": (lambda _, cost: cost.num_parameters, Column("parameters", lambda value: count(int(value)))),
}
"""By name: where it stands in an evaluation, and how it is shown."""


def column(name: str) -> Column:
    """How a figure is shown; metrics of evaluation as its reports show them."""
    for table in (_TRAINING, _COSTS):
        if name in table:
            return table[name][1]
    return Column(
        label(name),
        lambda value: metric_text(name, value),
        is_quality=name not in NEUTRAL,
        smaller_is_better=name in SMALLER_IS_BETTER,
        scale=lambda value: shown_value(name, value),
        axis=label(name) if shown_value(name, 1.0) == 1.0 else f"{label(name)}, percent",
    )


def check_columns(experiment: ExperimentConfig, path: Path) -> None:
    """Refuse columns that do not exist, and those that the experiment does not measure.

    Raises:
        ConfigError: There is one.
    """
    # Metrics of other packages have names of their own; which there are is known when they are computed.
    asked = str(experiment.changes) + str([system.changes for system in experiment.systems.values()])
    for name in experiment.columns:
        if name in _TRAINING:
            if all(system.artifact is not None for system in experiment.systems.values()):
                raise ConfigError(f"'{name}' is a figure of training, and nothing is trained", path=path, key="columns")
        elif name in _COSTS or name in METRICS or "evaluation.metrics" in asked:
            if experiment.measure == "none":
                raise ConfigError(f"'{name}' is told by evaluation, and measure is none", path=path, key="columns")
        else:
            known = [*METRICS, *_COSTS, *_TRAINING]
            near = nearest(name, known)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown column '{name}'; {hint}", path=path, key="columns")


def value_of(name: str, record: CellRecord) -> Value | None:
    """A figure of a cell; None where it has none (a perplexity in int8, for one)."""
    if name in _TRAINING:
        return _of_training(_TRAINING[name][0], record.trained)
    if record.result is None:
        return None
    split = record.result.splits[0]
    if name in _COSTS:
        found = _COSTS[name][0](split, record.result.resources)
        return Value(float(found)) if found is not None else None
    if name not in split.metrics or math.isnan(split.metrics[name]):
        return None
    spread = split.intervals.get(name)
    return Value(split.metrics[name], spread.low, spread.high) if spread else Value(split.metrics[name])


def _of_training(name: str, trained: Trained | None) -> Value | None:
    if trained is None or math.isnan(trained.metrics.get(name, math.nan)):
        return None
    return Value(trained.metrics[name])
