"""An experiment's plot, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from rayloom.config import ExperimentPlot
from rayloom.config.experiments import SYSTEM
from rayloom.evaluation.plots import AFTER, QUIET, STYLE, new_figure, svg_text
from rayloom.launch.experiments.columns import Value, column
from rayloom.launch.experiments.plan import short, value_text
from rayloom.launch.experiments.tables import Row

_COLORS = (AFTER, "#b4532a", "#5b8c5a", "#7b5ea7", "#c9a227", QUIET)
_WIDE = 20.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_NAME_CHARS = 24
_Points = list[tuple[Any, Value]]


def svg_plot(plot: ExperimentPlot, rows: Sequence[Row]) -> str | None:
    """Lines over numbers, bars over names, with intervals; None before there is a figure.

    Args:
        plot: What is drawn.
        rows: Of the table.
    """
    lines = _lines(plot, rows)
    if not lines:
        return None
    numeric = all(
        isinstance(x, int | float) and not isinstance(x, bool) for points in lines.values() for x, _ in points
    )
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(6.0, 3.2)
        figure.patch.set_facecolor("white")
        (_curves if numeric else _bars)(axes, plot, lines)
        axes.set_xlabel(short(plot.x) if plot.x != SYSTEM else "")
        axes.set_ylabel(column(plot.y).axis or column(plot.y).label)
        if len(lines) > 1:
            axes.legend(frameon=False, title=short(plot.lines or ""))
        return svg_text(figure)


def _lines(plot: ExperimentPlot, rows: Sequence[Row]) -> dict[str, _Points]:
    """Points by line; other keys that vary put several points at one place."""
    found: dict[str, _Points] = {}
    for row in rows:
        value = row.value(plot.y)
        if value is not None and math.isfinite(value.value):
            name = value_text(_at(row, plot.lines)) if plot.lines else ""
            found.setdefault(name, []).append((_at(row, plot.x), value))
    return found


def _at(row: Row, key: str) -> Any:
    return row.system if key == SYSTEM else dict(row.point)[key]


def _curves(axes: Axes, plot: ExperimentPlot, lines: dict[str, _Points]) -> None:
    scale = column(plot.y).scale
    for (name, points), color in zip(lines.items(), _repeated(len(lines)), strict=True):
        ordered = sorted(points, key=lambda point: float(point[0]))
        places, values = [x for x, _ in ordered], [scale(value.value) for _, value in ordered]
        axes.plot(places, values, "o-", color=color, markersize=5, linewidth=1.5, label=name or None)
        for x, value in ordered:
            if value.low is not None and value.high is not None:
                axes.plot([x, x], [scale(value.low), scale(value.high)], color=color, linewidth=1, alpha=0.6)
    places = sorted({float(x) for points in lines.values() for x, _ in points})
    if places[0] > 0 and places[-1] / places[0] >= _WIDE:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)


def _bars(axes: Axes, plot: ExperimentPlot, lines: dict[str, _Points]) -> None:
    scale = column(plot.y).scale
    names = list(dict.fromkeys(str(x) for points in lines.values() for x, _ in points))
    width = 0.8 / len(lines)
    for number, ((name, points), color) in enumerate(zip(lines.items(), _repeated(len(lines)), strict=True)):
        shift = (number - (len(lines) - 1) / 2) * width
        places = [names.index(str(x)) + shift for x, _ in points]
        axes.bar(places, [scale(value.value) for _, value in points], width * 0.9, color=color, label=name or None)
        for place, (_, value) in zip(places, points, strict=True):
            if value.low is not None and value.high is not None:
                axes.plot([place, place], [scale(value.low), scale(value.high)], color="#333333", linewidth=1)
    axes.set_xticks(range(len(names)), [_wrapped(name) for name in names])


def _wrapped(name: str) -> str:
    """A long name in two lines, and no longer than those."""
    if len(name) <= _NAME_CHARS // 2:
        return name
    words, first = name.split(), ""
    while words and len(f"{first} {words[0]}") <= _NAME_CHARS // 2 + 4:
        first = f"{first} {words.pop(0)}".strip()
    rest = " ".join(words)
    return f"{first}\n{rest if len(rest) <= _NAME_CHARS else rest[: _NAME_CHARS - 1] + '…'}".strip()


def _repeated(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]
