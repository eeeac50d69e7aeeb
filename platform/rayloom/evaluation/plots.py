"""The report's plots, as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayloom.evaluation.results import Resources, SplitResult

AFTER, BEFORE, QUIET = "#2f6f8f", "#c3ccd4", "#6b7680"
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rayloom",
    "text.parse_math": False,  # two dollars in a name or a setting are no formula
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#aab4bd",
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SHARES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "exact_match": "Exact match",
}


@dataclass(frozen=True)
class Line:
    """A curve: points of step and value, and how it looks."""

    points: Sequence[tuple[float, float]]
    color: str = AFTER
    label: str | None = None
    marker: str | None = None


def metric_bars(split: SplitResult, before: SplitResult | None) -> str | None:
    """Scores in percent, of the untuned model beside those of the tuned one; None without references."""
    names = [name for name in _SHARES if name in split.metrics]
    if not names:
        return None
    width = 0.8 if before is None else 0.4
    places = range(len(names))
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.7)
        if before is not None:
            values = [percent(name, before.metrics.get(name, 0.0)) for name in names]
            bars = axes.bar([place - width / 2 for place in places], values, width, color=BEFORE, label="before")
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=QUIET)
        values = [percent(name, split.metrics[name]) for name in names]
        shift = 0.0 if before is None else width / 2
        bars = axes.bar([place + shift for place in places], values, width, color=AFTER, label="after")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set_xticks(list(places), [_SHARES[name] for name in names])
        axes.set_ylim(0, 108)
        axes.set_ylabel("percent")
        if before is not None:
            axes.legend(frameon=False, loc="upper right", ncols=2)
        return svg_text(figure)


def rouge_histogram(split: SplitResult) -> str | None:
    """How ROUGE-L spreads over rows; None without references."""
    scores = [prediction.rougeL for prediction in split.predictions if prediction.rougeL is not None]
    if not scores:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.7)
        axes.hist(scores, bins=[step / 10 for step in range(11)], color=AFTER, edgecolor="white")
        mean = sum(scores) / len(scores)
        axes.axvline(mean, color="#b4532a", linewidth=1.2)
        axes.annotate(
            f" mean {mean:.2f}",
            (mean, axes.get_ylim()[1]),
            color="#b4532a",
            va="top",
            ha="left" if mean < 0.8 else "right",
        )
        axes.set_xlim(0, 1)
        axes.set_xlabel("ROUGE-L of a row")
        axes.set_ylabel("rows")
        return svg_text(figure)


def loss_curve(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Training and validation loss by step; None if the history has neither.

    Args:
        history: Records with ``step`` and ``loss`` (training), or ``eval_loss`` or ``metrics.loss``.
    """
    train = [(record["step"], record["loss"]) for record in history if "step" in record and "loss" in record]
    valid = [(record["step"], value) for record in history if (value := _eval_loss(record)) is not None]
    lines = [Line(train, BEFORE, "train"), Line(valid, AFTER, "validation", marker="o")]
    return line_chart(lines, "loss per token")


def line_chart(lines: Sequence[Line], label: str) -> str | None:
    """Values by step; None if no line has a point.

    Args:
        lines: To be drawn over each other.
        label: Of the values, with their unit.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.7)
        for line in drawn:
            steps, values = zip(*line.points, strict=True)
            marker = line.marker or ("o" if len(steps) == 1 else None)
            axes.plot(steps, values, color=line.color, linewidth=1.5, marker=marker, markersize=4, label=line.label)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if any(line.label for line in drawn):
            axes.legend(frameon=False)
        return svg_text(figure)


def throughput_bars(resources: Resources) -> str | None:
    """Prompts per second by batch size; None if not measured."""
    if not resources.throughput:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.7)
        labels = [str(point.batch_size) for point in resources.throughput]
        bars = axes.bar(labels, [point.prompts_per_s for point in resources.throughput], 0.55, color=AFTER)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.margins(y=0.15)
        axes.set_xlabel("batch size")
        axes.set_ylabel("prompts per second")
        return svg_text(figure)


def percent(name: str, value: float) -> float:
    """A metric on the scale of 0 to 100 (BLEU is on it already)."""
    return value if name == "bleu" else 100 * value


def _eval_loss(record: Mapping[str, Any]) -> float | None:
    metrics = record.get("metrics")
    value = metrics.get("loss") if isinstance(metrics, Mapping) else record.get("eval_loss")
    return float(value) if value is not None and "step" in record else None


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing, sizes in inches."""
    # Figure, not pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def svg_text(figure: Figure) -> str:
    """A drawing as SVG that can stand inside HTML."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    # Neither the XML prologue nor its metadata belongs into HTML.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", svg)
