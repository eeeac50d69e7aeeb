"""Metrics that other packages bring, by the entry point group ``rayloom.metrics``.

::

    # pyproject.toml of the package
    [project.entry-points."rayloom.metrics"]
    year_named = "my_package.metrics:year_named"

    def year_named(predictions, references, rows):
        return [float(any(char.isdigit() for char in text)) for text in predictions]
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

from rayloom.data import Row
from rayloom.errors import ConfigError
from rayloom.evaluation.measures import OWN_SCORES
from rayloom.evaluation.units import METRICS

GROUP = "rayloom.metrics"


class RowMetric(Protocol):
    """A metric of single rows; its mean is the metric of a split. More is better."""

    def __call__(self, predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row]) -> Sequence[float]:
        """One finite score for each row, in order."""
        ...


def load_metrics(names: Sequence[str]) -> dict[str, RowMetric]:
    """Metrics by their names.

    Raises:
        ConfigError: One is not installed, cannot be imported, is no function, or has the name of one of ours.
    """
    installed = {point.name: point for point in _installed()}
    found: dict[str, RowMetric] = {}
    for name in names:
        if name not in installed:
            known = ", ".join(sorted(installed)) or "none"
            raise ConfigError(
                f"no installed package brings the metric '{name}' (entry points of the group {GROUP}: {known})",
                key="evaluation.metrics",
            )
        if name in METRICS or name in OWN_SCORES:
            raise ConfigError(
                f"the metric '{name}' ({installed[name].value}) has the name of one of rayloom's own, whose figures it "
                "would replace: give its entry point another name",
                key="evaluation.metrics",
            )
        found[name] = _loaded(installed[name])
    return found


def _loaded(point: importlib.metadata.EntryPoint) -> RowMetric:
    try:
        metric: RowMetric = point.load()
    except Exception as error:
        raise ConfigError(
            f"the metric '{point.name}' ({point.value}) cannot be loaded: {error}", key="evaluation.metrics"
        ) from error
    if not callable(metric):
        raise ConfigError(
            f"the metric '{point.name}' ({point.value}) is no function but of the type {type(metric).__name__}",
            key="evaluation.metrics",
        )
    return metric


def _installed() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=GROUP)


def custom_scores(
    metrics: Mapping[str, RowMetric], predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row]
) -> list[dict[str, float]]:
    """The scores of each row by each metric.

    Raises:
        ConfigError: A metric fails, or does not give one finite number for each row.
    """
    columns = {name: _scores(name, metric, predictions, references, rows) for name, metric in metrics.items()}
    return [{name: scores[at] for name, scores in columns.items()} for at in range(len(predictions))]


def _scores(
    name: str, metric: RowMetric, predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row]
) -> list[float]:
    try:
        given: Any = metric(list(predictions), list(references), list(rows))
        if isinstance(given, str | Mapping | Set):  # these can be gone through as well, but not row by row
            raise TypeError(f"it gave a {type(given).__name__}, not a number for each row in their order")
        scores = [float(score) for score in given]
    except Exception as error:
        raise ConfigError(
            f"the metric '{name}' failed with {type(error).__name__}: {error}", key="evaluation.metrics"
        ) from error
    if len(scores) != len(predictions) or not all(map(math.isfinite, scores)):
        raise ConfigError(
            f"the metric '{name}' gave {len(scores)} scores for {len(predictions)} rows, or one that is not finite: "
            "it has to give one finite number for each row",
            key="evaluation.metrics",
        )
    return scores
