"""A comparison's plots, as SVG text."""

from __future__ import annotations

import math

import matplotlib as mpl

from rayloom.evaluation.contest import Contest, Contestant
from rayloom.evaluation.plots import AFTER, BEFORE, STYLE, new_figure, svg_text
from rayloom.evaluation.units import label, shown_value

_NAME_CHARS = 28


def quality_bars(contest: Contest) -> str | None:
    """The main metric of each system with its interval; None where nobody has it."""
    metric = contest.main_metric
    known = [each for each in contest.systems if _is_finite(each, metric)]
    if not known:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 0.9 + 0.45 * len(known))
        places = range(len(known))
        colors = [BEFORE if each is contest.systems[0] else AFTER for each in known]
        values = [shown_value(metric, each.split.metrics[metric]) for each in known]
        axes.barh(list(places), values, 0.6, color=colors)
        for place, each in zip(places, known, strict=True):
            spread = each.split.intervals.get(metric)
            if spread is not None:
                ends = [shown_value(metric, spread.low), shown_value(metric, spread.high)]
                axes.plot(ends, [place, place], color="#b4532a", linewidth=2)
        axes.set_yticks(list(places), [_short(each) for each in known])
        axes.invert_yaxis()
        axes.set_xlabel(label(metric))
        return svg_text(figure)


def trade_off(contest: Contest) -> str | None:
    """Quality over median latency; None without latencies."""
    metric = contest.main_metric
    points = [
        (each.result.resources.latency_p50_s, shown_value(metric, each.split.metrics[metric]), each)
        for each in contest.systems
        if each.result.resources.latency_p50_s is not None and _is_finite(each, metric)
    ]
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.7)
        for latency, value, each in points:
            axes.plot([latency], [value], "o", color=BEFORE if each is contest.systems[0] else AFTER, markersize=8)
            axes.annotate(_short(each), (latency, value), xytext=(6, 5), textcoords="offset points", fontsize=8)
        axes.margins(x=0.25, y=0.25)
        axes.set_xlabel("median latency, seconds")
        axes.set_ylabel(label(metric))
        return svg_text(figure)


def speed_bars(contest: Contest) -> str | None:
    """Most tokens per second of each system; None if not measured."""
    speeds = [
        (each, max(point.tokens_per_s for point in each.result.resources.throughput))
        for each in contest.systems
        if each.result.resources.throughput
    ]
    return _bars(contest, speeds, "generated tokens per second")


def memory_bars(contest: Contest) -> str | None:
    """Peak memory of each system."""
    found = [(each, each.result.resources) for each in contest.systems]
    peaks = [(each, (used.peak_gpu_bytes or used.peak_host_bytes or 0) / 2**30) for each, used in found]
    return _bars(contest, peaks, "GiB")


def _bars(contest: Contest, values: list[tuple[Contestant, float]], what: str) -> str | None:
    if not values:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(5.2, 0.9 + 0.45 * len(values))
        places = list(range(len(values)))
        colors = [BEFORE if each is contest.systems[0] else AFTER for each, _ in values]
        bars = axes.barh(places, [value for _, value in values], 0.6, color=colors)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.set_yticks(places, [_short(each) for each, _ in values])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(what)
        return svg_text(figure)


def _is_finite(system: Contestant, metric: str) -> bool:
    """Whether it has a figure that can be drawn: perplexities may be infinite."""
    return math.isfinite(system.split.metrics.get(metric, math.nan))


def _short(system: Contestant) -> str:
    name = system.name
    return name if len(name) <= _NAME_CHARS else f"…{name[-_NAME_CHARS + 1 :]}"
