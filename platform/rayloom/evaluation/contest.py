"""What a comparison finds out, and the rows of its tables."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rayloom.evaluation.measures import SMALLER_IS_BETTER
from rayloom.evaluation.results import EvaluationResult, Significance, SplitResult
from rayloom.evaluation.units import (
    METRICS,
    count,
    duration,
    interval_text,
    label,
    margin_text,
    metric_text,
    p_text,
    size,
)

_TELLING = ("rougeL", "bleu", "token_f1", "relevance", "scorer_perplexity", "perplexity")
_SIGNIFICANT = 0.05


class Contestant(BaseModel):
    """One system, measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)

    name: str
    target: str
    parameters: dict[str, Any]
    result: EvaluationResult
    tests: dict[str, Significance] = Field(default_factory=dict)
    """By metric, against the first system; empty for the first itself."""

    @property
    def split(self) -> SplitResult:
        """The rows that were answered."""
        return self.result.splits[0]


class Contest(BaseModel):
    """A whole comparison; the first system is what the others are tested against."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)

    rows: str
    """Where the rows are from."""
    task: str
    systems: list[Contestant]

    @property
    def main_metric(self) -> str:
        """ROUGE-L, or perplexity where there are no references."""
        return "rougeL" if "rougeL" in self.systems[0].split.metrics else "perplexity"

    @property
    def headline(self) -> str:
        """Which system is best, how far ahead of the second, and whether that is more than chance."""
        metric = self.main_metric
        sign = 1 if metric in SMALLER_IS_BETTER else -1
        known = [each for each in self.systems if not math.isnan(each.split.metrics.get(metric, math.nan))]
        known.sort(key=lambda each: sign * each.split.metrics[metric])
        if not known:
            return "no system has a figure that all could be compared by"
        best = known[0]
        start = f"{best.name} has the best {label(metric)}: {metric_text(metric, best.split.metrics[metric])}"
        if len(known) > 1:
            margin = margin_text(metric, abs(best.split.metrics[metric] - known[1].split.metrics[metric]))
            start = f"{start}, {margin} ahead of {known[1].name}"
        tested = self._tested(best, metric)
        return f"{start}; {tested}" if tested else start

    def _tested(self, best: Contestant, metric: str) -> str:
        first = self.systems[0]
        if best is first:
            tested = [each for each in self.systems[1:] if metric in each.tests]
            rivals = [each for each in tested if not _is_significant(each.tests[metric])]
            if tested and not rivals and len(tested) == len(self.systems) - 1:
                return "significantly better than all others"
            words = "not significantly" if rivals else "significantly"
            names = ", ".join(each.name for each in rivals or tested)
            return f"{words} better than {names}" if names else ""
        test = best.tests.get(metric)
        if test is None:
            return ""
        significant = "significantly" if _is_significant(test) else "not significantly"
        return f"{significant} better than {first.name} (p {p_text(test.p_value)})"


def quality_table(contest: Contest) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the metrics that tell most with their intervals, and the test against the first system."""
    names = [name for name in _TELLING if any(name in each.split.metrics for each in contest.systems)]
    main = contest.main_metric
    body = []
    for each in contest.systems:
        cells = [_value(each, name) for name in names]
        body.append([each.name, *cells, *_test_cells(main, each.tests.get(main))])
    return ["system", *map(label, names), f"{label(main)} difference", "p"], body


def cost_table(contest: Contest) -> tuple[list[str], list[list[str]]]:
    """Header and rows: latency, speed, memory, size."""
    header = ["system", "latency p50 / p95", "tokens/s", "prompts/s", "peak memory", "on disk", "parameters"]
    body = []
    for each in contest.systems:
        found = each.result.resources
        fastest = max(found.throughput, key=lambda point: point.tokens_per_s, default=None)
        latency = (
            f"{duration(found.latency_p50_s)} / {duration(found.latency_p95_s)}"
            if found.latency_p50_s is not None and found.latency_p95_s is not None
            else "–"
        )
        body.append(
            [
                each.name,
                latency,
                f"{fastest.tokens_per_s:.0f} (batch {fastest.batch_size})" if fastest else "–",
                f"{fastest.prompts_per_s:.2f}" if fastest else "–",
                size(found.peak_gpu_bytes or found.peak_host_bytes),
                size(found.size_on_disk_bytes),
                f"{count(found.num_parameters)} ({found.dtype})",
            ]
        )
    return header, body


def csv_text(contest: Contest) -> str:
    """All figures as numbers, one line per system."""
    names = [name for name in METRICS if any(name in each.split.metrics for each in contest.systems)]
    names += sorted({name for each in contest.systems for name in each.split.metrics} - set(names))
    lines = [_csv_line(each, names) for each in contest.systems]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _csv_line(system: Contestant, names: list[str]) -> dict[str, Any]:
    split, found = system.split, system.result.resources
    line: dict[str, Any] = {"system": system.name, "num_rows": split.num_rows}
    for name in names:
        line[name] = split.metrics.get(name)
        spread, test = split.intervals.get(name), system.tests.get(name)
        line |= {f"{name}_low": spread.low if spread else None, f"{name}_high": spread.high if spread else None}
        line |= {f"{name}_p": test.p_value if test else None}
    line |= {
        name: getattr(found, name)
        for name in (
            "latency_p50_s",
            "latency_p95_s",
            "peak_host_bytes",
            "peak_gpu_bytes",
            "size_on_disk_bytes",
            "num_parameters",
            "dtype",
            "device",
        )
    }
    for point in found.throughput:
        line[f"tokens_per_s_batch_{point.batch_size}"] = point.tokens_per_s
        line[f"prompts_per_s_batch_{point.batch_size}"] = point.prompts_per_s
    return line


def _value(system: Contestant, name: str) -> str:
    if name not in system.split.metrics:
        return "–"
    spread = interval_text(name, system.split.intervals.get(name))
    value = metric_text(name, system.split.metrics[name])
    return f"{value} ({spread})" if spread else value


def _test_cells(metric: str, test: Significance | None) -> list[str]:
    if test is None:
        return ["", ""]
    low, high = (metric_text(metric, end).removesuffix(" %") for end in (test.low, test.high))
    sign = "+" if test.difference > 0 else ""
    difference = metric_text(metric, test.difference).removesuffix(" %")
    return [f"{sign}{difference} ({low} to {high})", p_text(test.p_value)]


def _is_significant(test: Significance) -> bool:
    return test.p_value < _SIGNIFICANT
