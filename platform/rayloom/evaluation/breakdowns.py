"""The tables of a split beside its metrics: slices, and settings of generation."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.evaluation.results import Setting, SplitResult, Spread
from rayloom.evaluation.units import duration, interval_text, label, metric_text

_TELLING = ("rougeL", "bleu", "token_f1", "relevance", "perplexity")
Breakdown = tuple[str, list[str], list[list[str]]]
"""Title, header, and rows of cells."""


def breakdowns(split: SplitResult) -> list[Breakdown]:
    """Those that were asked for."""
    tables = [_slice_table(split, column) for column in dict.fromkeys(each.column for each in split.slices)]
    return [*([settings_table(split)] if split.settings else []), *tables]


def settings_table(split: SplitResult) -> Breakdown:
    """Quality and time by generation parameters; the first row is as published."""
    names = _shown(split.metrics)
    own = Setting(
        parameters={},
        metrics=split.metrics,
        intervals=split.intervals,
        seconds=split.seconds or 0.0,
        num_rows=len(split.predictions),
    )
    body = [
        [setting_name(each), *_cells(names, each.metrics, each.intervals), duration(each.seconds_per_row)]
        for each in (own, *split.settings)
    ]
    return "Settings of generation", ["setting", *map(label, names), "time per row"], body


def setting_name(setting: Setting) -> str:
    """The parameters that a setting changes."""
    return ", ".join(f"{name}={value}" for name, value in setting.parameters.items()) or "as published"


def _slice_table(split: SplitResult, column: str) -> Breakdown:
    names = _shown(split.metrics)
    body = [
        [each.value or "(none)", str(each.num_rows), *_cells(names, each.metrics, each.intervals)]
        for each in split.slices
        if each.column == column
    ]
    return f"By {column}", [column, "rows", *map(label, names)], body


def _shown(metrics: dict[str, float]) -> list[str]:
    return [name for name in _TELLING if name in metrics][:4]


def _cells(names: Sequence[str], metrics: dict[str, float], intervals: dict[str, Spread]) -> list[str]:
    cells = []
    for name in names:
        spread = interval_text(name, intervals.get(name))
        value = metric_text(name, metrics[name]) if name in metrics else ""
        cells.append(f"{value} ({spread})" if spread else value)
    return cells
