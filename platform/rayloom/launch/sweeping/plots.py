"""A sweep's plots, as SVG text in the style of the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from rayloom.config import Dimension
from rayloom.evaluation.plots import AFTER, BEFORE, QUIET, STYLE, new_figure, svg_text
from rayloom.launch.sweeping.ranking import Ranked, Results
from rayloom.launch.sweeping.space import short_names, shown

_SECOND = "#7fa8bd"
_SIZE = (6.4, 3.1)


def color_of(ranked: Ranked) -> str:
    """The best stands out, those within noise of it a little, the others stay in the background."""
    return {"best": AFTER, "within noise": _SECOND}.get(ranked.verdict, BEFORE)


def learning_curves(results: Results) -> str | None:
    """The metric by step, a line for each trial; None if training does not report it."""
    metric = results.sweep.config.metric
    drawn = [(each, _curve(each, metric)) for each in reversed(results.trials)]
    drawn = [(each, points) for each, points in drawn if points]
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(*_SIZE)
        for each, points in drawn:
            steps, values = zip(*points, strict=True)
            is_best = each.verdict == "best"
            axes.plot(
                steps,
                values,
                color=color_of(each),
                linewidth=2.2 if is_best else 1.2,
                marker="o" if is_best or len(points) == 1 else None,
                markersize=3.5,
                label=each.record.name if is_best else None,
            )
            if each.verdict == "stopped":
                axes.plot(steps[-1], values[-1], marker="x", color=QUIET, markersize=5)
        axes.set_xlabel("step (× where a trial was stopped)")
        axes.set_ylabel(results.metric)
        axes.legend(frameon=False)
        return svg_text(figure)


def _curve(ranked: Ranked, metric: str) -> list[tuple[int, float]]:
    """Reports of the run that the result is of, and of those that it has gone on from itself."""
    points = [(each.step, each.metrics[metric]) for each in ranked.record.reports if metric in each.metrics]
    return [(step, value) for step, value in points if math.isfinite(value)]


def parallel_coordinates(results: Results) -> str | None:
    """An axis for each setting and one for the metric, a line for each trial."""
    scored = [each for each in reversed(results.trials) if each.score is not None and math.isfinite(each.score)]
    if not scored:
        return None
    space = results.sweep.config.space
    names = short_names(list(space))
    scales = [Scale.of(each, [trial.record.values[key] for trial in scored]) for key, each in space.items()]
    scores = Scale.of_numbers([trial.score for trial in scored if trial.score is not None])
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(*_SIZE)
        for trial in scored:
            heights = [scale.place(trial.record.values[key]) for scale, key in zip(scales, space, strict=True)]
            is_best = trial.verdict == "best"
            axes.plot(
                range(len(heights) + 1),
                [*heights, scores.place(trial.score)],
                color=color_of(trial),
                linewidth=2.4 if is_best else 1.2,
                alpha=1.0 if is_best else 0.8,
            )
        for at, scale in enumerate([*scales, scores]):
            _draw_axis(axes, at, scale)
        axes.set_xticks(range(len(scales) + 1), [*names.values(), results.metric])
        axes.set_yticks([])
        axes.set_xlim(-0.25, len(scales) + 0.45)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="x", length=0)
        return svg_text(figure)


def _draw_axis(axes: Axes, at: int, scale: Scale) -> None:
    axes.axvline(at, ymin=0.04, ymax=0.96, color="#aab4bd", linewidth=0.9, zorder=0)
    for height, text in scale.ticks():
        axes.annotate(
            text, (at, height), xytext=(4, 0), textcoords="offset points", fontsize=7, color=QUIET, va="center"
        )


class Scale:
    """Places the values of one axis between 0 and 1.

    Args:
        values: Of a list, in order; or the two ends of a range.
        is_list: Which of these they are.
        is_log: Whether the range counts orders of magnitude.
    """

    def __init__(self, values: Sequence[Any], *, is_list: bool, is_log: bool = False) -> None:
        self._values, self._is_list, self._is_log = list(values), is_list, is_log

    @classmethod
    def of(cls, dimension: Dimension, used: Sequence[Any]) -> Scale:
        """The axis of a setting; of a list, in the order of its values where these are numbers."""
        if dimension.values is None:
            return cls(dimension.bounds, is_list=False, is_log=dimension.loguniform is not None)
        listed = dimension.values
        if all(isinstance(value, int | float) for value in listed):
            listed = sorted(listed)
        return cls([value for value in listed if value in used], is_list=True)

    @classmethod
    def of_numbers(cls, values: Sequence[float]) -> Scale:
        """An axis from the least to the greatest of some numbers."""
        return cls((min(values), max(values)), is_list=False)

    def place(self, value: Any) -> float:
        """Height of a value."""
        if self._is_list:
            return self._values.index(value) / max(1, len(self._values) - 1) if len(self._values) > 1 else 0.5
        low, high = self._values
        if self._is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 0.5 if high == low else (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights with their labels."""
        values = self._values if self._is_list else list(dict.fromkeys(self._values))
        return [(self.place(value), shown(value)) for value in values]
