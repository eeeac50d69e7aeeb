"""Config of a sweep: a training config, what is varied in it, how, and by what trials are judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayloom.config.base import Section

Search = Literal["random", "grid", "optuna"]
Mode = Literal["min", "max"]
SMALLER_IS_BETTER = frozenset({"loss", "perplexity", "nll", "repetition", "self_bleu", "scorer_perplexity"})
"""Metrics that are minimised where ``mode`` is not given."""
EVALUATION_PREFIX = "evaluation."
HANDED_OVER = (
    "training.learning_rate",
    "training.lr_scheduler",
    "training.warmup_steps",
    "training.warmup_ratio",
    "training.label_smoothing",
    "lora.lora_dropout",
)
"""Keys that a run can change in the middle: none of them decides a tensor's shape, the rows of a step, or what the
optimizer's saved state holds."""


class Dimension(Section):
    """The values that one key may take. Exactly one of these keys is given."""

    uniform: tuple[float, float] | None = None
    """Any number between two."""
    loguniform: tuple[float, float] | None = None
    """Any number between two above zero, each order of magnitude equally likely."""
    quniform: tuple[float, float, float] | None = None
    """Low, high and step: low, low + step, low + 2 x step, … up to high."""
    integer: tuple[int, int] | None = None
    """Any whole number from the first to the second, both included."""
    choice: list[Any] | None = None
    """One of these."""
    grid: list[Any] | None = None
    """Each of these: all are tried with each draw of the other keys."""

    @property
    def kind(self) -> str:
        """Which of the keys is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any] | None:
        """All values there are; None of a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value of a range."""
        low, high, *_ = getattr(self, self.kind)
        return low, high

    @property
    def ends(self) -> list[Any]:
        """Values that stand for all where the dimension is checked against its key."""
        if self.values is not None:
            return self.values
        low, high = self.bounds
        return [low, high] if self.integer is not None else [float(low), float(high)]

    def holds(self, value: Any) -> bool:
        """Whether a value belongs to it."""
        if self.values is not None:
            return value in self.values
        low, high = self.bounds
        is_number = isinstance(value, int if self.integer is not None else int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"give one of {kinds}; there {'are ' + ' and '.join(given) if given else 'is none'}")
        if self.values is not None:
            if not self.values or any(self.values.count(value) > 1 for value in self.values):
                raise ValueError(f"{self.kind}: list each value once, and one at least")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind}: {low:g} is not below {high:g}")
        if self.loguniform is not None and low <= 0:
            raise ValueError("loguniform: both ends lie above 0")
        if self.quniform is not None and not 0 < self.quniform[2] <= high - low:
            raise ValueError(f"quniform: the step lies between 0 and {high - low:g}")
        return self


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al., 2020): stop what is behind at each rung."""

    grace: int = Field(1, ge=1)
    """The first rung: no trial is stopped before."""
    reduction: float = Field(3.0, gt=1.0)
    """Rungs lie at grace, grace x reduction, grace x reduction², …, and about one in so many trials passes each."""
    unit: Literal["steps", "epochs"] = "steps"
    """What rungs are counted in. Trials are compared at the first validation at or after a rung."""


class MedianConfig(Section):
    """Stop a trial whose best value is worse than the median of the others' means at the same point."""

    grace: int = Field(1, ge=1)
    """No trial is stopped before."""
    min_trials: int = Field(3, ge=2)
    """Trials that must have got as far for a median to count."""
    unit: Literal["steps", "epochs"] = "steps"
    """What grace is counted in."""


class PbtConfig(Section):
    """Population based training (Jaderberg et al., 2017): the worst trials take over the weights of the best."""

    interval: int = Field(..., ge=1)
    """How often trials are compared and handed over."""
    quantile: float = Field(0.25, gt=0.0, le=0.5)
    """Share of trials that takes over from as many of the best."""
    resample: float = Field(0.25, ge=0.0, le=1.0)
    """Probability that a setting is drawn anew instead of being changed a little."""
    factors: tuple[float, float] = (0.8, 1.25)
    """A number is multiplied by one of these, and stays in its range."""
    unit: Literal["steps", "epochs"] = "steps"
    """What interval is counted in."""


class SchedulerConfig(Section):
    """Who decides during a sweep which trials go on. One of these at most; without any, all trials run to their end."""

    asha: AshaConfig | None = None
    median: MedianConfig | None = None
    pbt: PbtConfig | None = None

    @property
    def kind(self) -> Literal["none", "asha", "median", "pbt"]:
        """Which one it is."""
        given: list[Literal["asha", "median", "pbt"]] = [
            name for name in ("asha", "median", "pbt") if getattr(self, name) is not None
        ]
        return given[0] if given else "none"

    @property
    def unit(self) -> Literal["steps", "epochs"]:
        """What its settings are counted in."""
        chosen = self.asha or self.median or self.pbt
        return chosen.unit if chosen else "steps"

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("asha", "median", "pbt") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other: give one")
        return self


class SweepOutput(Section):
    """Where a sweep's results go."""

    storage_path: str = "sweeps"
    """Folder or URI for sweeps. Relative paths start at the working folder."""
    name: str | None = None
    """Name of the sweep, and of its folder; that of its file where not given. The same command goes on with a sweep
    that was interrupted."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith(".") or "/" in value or "\\" in value):
            raise ValueError(f"{value!r} cannot name a sweep: it names one folder, so take no slash and no dot first")
        return value


class SweepConfig(Section):
    """Many training runs of one config, each with other settings, and the best of them."""

    config: str
    """Training config that trials are made of, as ``rayloom train`` takes it; relative to this file's folder."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of that config that are the same in all trials, such as ``training.num_epochs: 1``. Relative paths of data
    files start at that config's folder, here and in the space."""
    space: dict[str, Dimension] = Field(..., min_length=1)
    """What is varied: any key of the training config, as ``training.learning_rate: {loguniform: [1e-4, 1e-2]}``."""
    search: Search = "random"
    """``random``; ``grid``: each combination of values once; ``optuna``: tree-structured Parzen estimator."""
    start_with: list[dict[str, Any]] = Field(default_factory=list)
    """Settings to try first: a value for each key of the space."""
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)
    metric: str = "loss"
    """What decides: a validation figure of training (``loss``, ``perplexity``, ``rougeL``, ``exact_match``, …), or
    ``evaluation.NAME``: a figure of ``rayloom evaluate`` (``evaluation.chrf``) on the validation rows, measured on each
    finished trial's artifact. Test rows are never looked at."""
    mode: Mode | None = None
    """Which way is better; by the metric's name where not given."""
    num_trials: int | None = Field(None, ge=1)
    """Trials to make (with ``grid`` keys and random search: draws, each with all combinations of those). Not for grid
    search, which makes all there are."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at a time; as many as the resources allow where not given."""
    max_failures: int = Field(1, ge=0)
    """How often a failed trial is started again, from its last checkpoint."""
    seed: int = Field(0, ge=0)
    """Equal seeds draw equal settings."""
    intervals: bool = True
    """Measure the artifact of each finished trial row by row on validation, so that the report can say which
    differences are within noise (paired randomization test against the best)."""
    output: SweepOutput = Field(default_factory=SweepOutput)

    @property
    def direction(self) -> Mode:
        """Which way is better."""
        return self.mode or ("min" if self.metric.removeprefix(EVALUATION_PREFIX) in SMALLER_IS_BETTER else "max")

    @property
    def is_measured_at_end(self) -> bool:
        """Whether the metric is one of evaluation, which only a finished artifact has."""
        return self.metric.startswith(EVALUATION_PREFIX)

    @property
    def total_trials(self) -> int:
        """Trials of the whole sweep."""
        crossed = [len(dimension.values or ()) for dimension in self.space.values() if self._is_crossed(dimension)]
        return math.prod(crossed) * (self.num_trials or 1)

    def _is_crossed(self, dimension: Dimension) -> bool:
        return dimension.grid is not None or (self.search == "grid" and dimension.choice is not None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_search()
        self._check_scheduler()
        for number, point in enumerate(self.start_with):
            _check_point(f"start_with, entry {number + 1}", point, self.space)
        if self.num_trials is not None and len(self.start_with) > self.total_trials:
            raise ValueError(f"start_with has more entries than the {self.total_trials} trials of num_trials")
        return self

    def _check_search(self) -> None:
        if self.search == "grid":
            if ranges := [key for key, each in self.space.items() if each.values is None]:
                raise ValueError(f"search 'grid' needs lists of values: give {ranges[0]} as grid or choice")
            if self.num_trials is not None:
                raise ValueError(
                    "num_trials contradicts search 'grid', which makes each combination once: leave it out"
                )
            if self.start_with:
                raise ValueError("start_with contradicts search 'grid', which tries every combination: leave it out")
        elif self.num_trials is None:
            raise ValueError(f"search '{self.search}' needs num_trials")
        grids = [key for key, each in self.space.items() if each.grid is not None]
        if grids and self.search == "optuna":
            raise ValueError(f"search 'optuna' chooses values itself: give {grids[0]} as choice")
        if grids and self.start_with:
            raise ValueError(f"start_with contradicts 'grid' of {grids[0]}, which is tried with every draw: use choice")

    def _check_scheduler(self) -> None:
        kind = self.scheduler.kind
        if self.is_measured_at_end and kind != "none":
            raise ValueError(
                f"scheduler '{kind}' compares trials while they train, and {self.metric} is only known of finished "
                "ones: take a metric that training reports, such as rougeL, or no scheduler"
            )
        if kind != "pbt":
            return
        if self.search == "optuna":
            raise ValueError("pbt changes settings itself, and needs search 'random'")
        if self.total_trials < 2:
            raise ValueError("pbt needs a population: num_trials of 2 at least")
        fixed = [key for key in self.space if key not in HANDED_OVER]
        if fixed:
            raise ValueError(
                f"pbt cannot change {fixed[0]} in the middle of a run; it can change {', '.join(HANDED_OVER)}"
            )


def _check_point(name: str, point: Mapping[str, Any], space: Mapping[str, Dimension]) -> None:
    missing, unknown = [key for key in space if key not in point], [key for key in point if key not in space]
    if missing or unknown:
        problem = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which is not in the space"
        raise ValueError(f"{name} {problem}: it names a value for each key of the space, and no other")
    for key, value in point.items():
        if not space[key].holds(value):
            raise ValueError(f"{name}: {value!r} lies outside the space of {key}")


def flattened(values: Mapping[str, Any], prefix: Sequence[str] = ()) -> dict[str, Any]:
    """Nested sections as dotted keys: ``{training: {seed: 1}}`` is ``{training.seed: 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, (*prefix, key))
        else:
            flat[".".join((*prefix, key))] = value
    return flat
