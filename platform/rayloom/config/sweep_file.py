"""From a sweep's YAML file to a sweep whose every trial is a valid training config."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayloom.config.loading import anchored, load_run_config, read_values, validate
from rayloom.config.problems import Lines, config_error
from rayloom.config.run import RunConfig
from rayloom.config.sweep import EVALUATION_PREFIX, Dimension, SweepConfig, flattened
from rayloom.errors import ConfigError

_SELECTING = ("loss", "rougeL", "exact_match", "bleu")
"""Metrics that training can choose the artifact's checkpoint by."""
_NOT_VARIED = ("output.", "tracking.")
"""Keys that decide where results go, not what they are."""

Values = Mapping[str, Any]
"""Settings of a trial by dotted key."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been checked.

    Attributes:
        config: Its config.
        base: The training config with the overrides.
        name: Of the sweep.
    """

    config: SweepConfig
    base: RunConfig
    name: str

    def trial_config(self, values: Values, **output: Any) -> RunConfig:
        """The training config of a trial.

        Args:
            values: Its settings.
            output: Keys of the ``output`` section.

        Raises:
            ConfigError: The combination of settings contradicts itself.
        """
        merged = _with_values(self.base.model_dump(mode="json"), values)
        merged["output"] |= output
        return validate(RunConfig, merged)


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep, and check that each key of its space is one that takes these values.

    Args:
        path: YAML file.
        overrides: ``a.b=c`` settings of the sweep that go before the file's.

    Raises:
        ConfigError: Something in it, or in its training config, is wrong.
    """
    path = Path(path)
    values, lines = read_values(path, overrides)
    if isinstance(values.get("overrides"), dict):
        values["overrides"] = flattened(values["overrides"])
    config = validate(SweepConfig, values, path=path, lines=lines)
    config = _anchored(config, (path.parent / config.config).resolve().parent)
    place = Places(path, lines)
    base = _base(config, place)
    for key, dimension in config.space.items():
        _check_dimension(base, key, dimension, place)
    _check_metric(config, base, place)
    return Sweep(config, base, config.output.name or path.stem)


def _anchored(config: SweepConfig, folder: Path) -> SweepConfig:
    """Data files start at the folder of the training config, whose keys they are; as with its ``--set``."""

    def placed(values: Values) -> dict[str, Any]:
        return {key: anchored(key, value, folder) for key, value in values.items()}

    space = {
        key: each
        if each.values is None
        else each.model_copy(update={each.kind: [anchored(key, value, folder) for value in each.values]})
        for key, each in config.space.items()
    }
    start_with = [placed(point) for point in config.start_with]
    return config.model_copy(update={"overrides": placed(config.overrides), "space": space, "start_with": start_with})


@dataclass(frozen=True)
class Places:
    """Where the keys of a sweep stand."""

    path: Path
    lines: Lines

    def error(self, message: str, *keys: str) -> ConfigError:
        """An error at a key of the sweep."""
        line = next((self.lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), None)
        return ConfigError(message, path="--set" if line == 0 else self.path, line=line, key=".".join(keys))

    def lines_of(self, section: str, key: str) -> Lines:
        """A key of the training config stands where the sweep names it."""
        line = self.lines.get((section, key), self.lines.get((section,)))
        return {} if line is None else {tuple(key.split(".")): line}


def _base(config: SweepConfig, place: Places) -> RunConfig:
    loaded = load_run_config(place.path.parent / config.config)
    for key in config.overrides:
        if key in config.space:
            raise place.error(f"{key} is varied in the space as well: give it once", "overrides", key)
    changed = _with_values(loaded.model_dump(mode="json"), config.overrides)
    # All together: one may need another.
    return _validated(changed, place, "overrides", *config.overrides)


def _check_dimension(base: RunConfig, key: str, dimension: Dimension, place: Places) -> None:
    if key.startswith(_NOT_VARIED):
        raise place.error("this key decides where results go; it cannot be varied", "space", key)
    for value in dimension.ends:
        _validated(_with_values(base.model_dump(mode="json"), {key: value}), place, "space", key)


def _validated(values: dict[str, Any], place: Places, section: str, *keys: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = {name: line for key in keys for name, line in place.lines_of(section, key).items()}
        raise config_error(RunConfig, error, place.path, lines) from None


def _check_metric(config: SweepConfig, base: RunConfig, place: Places) -> None:
    metric, chosen = config.metric.removeprefix(EVALUATION_PREFIX), base.training.metric_for_best
    is_text = base.model.task_type == "language-modeling"
    if is_text and metric not in ("loss", "perplexity") and not config.is_measured_at_end:
        raise place.error("language modelling reports only loss and perplexity", "metric")
    if config.is_measured_at_end or metric in ("loss", "perplexity"):
        wanted = "loss" if metric == "perplexity" else metric
    else:
        wanted = metric
        if base.training.eval_rows == 0:
            raise place.error(
                "training generates no answers to compute it from: add 'training.eval_rows: 48' to overrides", "metric"
            )
    if wanted in _SELECTING and chosen != wanted:
        raise place.error(
            f"the sweep would judge by {wanted}, but each run keeps the checkpoint with the best {chosen}: "
            f"add 'training.metric_for_best: {wanted}' to overrides",
            "metric",
        )


def _with_values(base: Mapping[str, Any], values: Values) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = merged
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}
            inner = inner[parent]
        inner[last] = value
    return merged
