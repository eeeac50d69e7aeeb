"""The figures of a report as rows of text, and the Markdown page made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rayloom.evaluation.breakdowns import breakdowns
from rayloom.evaluation.measures import SMALLER_IS_BETTER
from rayloom.evaluation.results import EvaluationResult, Prediction, Resources, Significance, SplitResult
from rayloom.evaluation.units import (
    METRICS,
    NEUTRAL,
    count,
    duration,
    interval_text,
    label,
    metric_text,
    p_text,
    size,
    training_label,
    training_text,
)

_CELL_CHARS = 300


@dataclass(frozen=True)
class Comparison:
    """A result and, where measured, that of the untuned model."""

    result: EvaluationResult
    baseline: EvaluationResult | None = None
    significance: Mapping[str, Mapping[str, Significance]] = field(default_factory=dict)
    """By split and metric: whether the two differ by more than chance."""

    def before(self, split: SplitResult) -> SplitResult | None:
        """The untuned model on the same split."""
        splits = self.baseline.splits if self.baseline else []
        return next((each for each in splits if each.name == split.name), None)

    def figures(self, split: SplitResult) -> list[Figure]:
        """All metrics of a split, beside those of the untuned model where there are some."""
        return figures(split, self.before(split), self.significance.get(split.name))

    @property
    def confidence(self) -> str:
        """Of the intervals: ``95 %``."""
        return f"{100 * float(self.result.evaluation.get('confidence', 0.95)):g} %"

    @property
    def title(self) -> str:
        """Headline of the report."""
        return f"Evaluation of {self.result.model}"

    @property
    def subtitle(self) -> str:
        """What was measured, when, where."""
        result = self.result
        return (
            f"{result.task} · {result.family} · {count(result.resources.num_parameters)} parameters · "
            f"{result.resources.device} · {result.created}"
        )

    def num_examples(self) -> int:
        """Best and worst predictions to show."""
        return int(self.result.evaluation.get("num_examples", 10))


@dataclass(frozen=True)
class Figure:
    """One metric, ready to be read.

    Attributes:
        name: What it is.
        value: Now.
        before: Of the untuned model, empty if not measured.
        change: Difference to before, with its sign.
        is_better: Whether the change is for the better; None if there is none, or neither way is better.
        interval: Confidence interval of the value; empty if there is none.
        p_value: Of a change this large by chance; empty if not tested.
    """

    name: str
    value: str
    before: str = ""
    change: str = ""
    is_better: bool | None = None
    interval: str = ""
    p_value: str = ""


def figures(
    split: SplitResult, before: SplitResult | None, significance: Mapping[str, Significance] | None = None
) -> list[Figure]:
    """All metrics of a split in a fixed order, custom ones last."""
    tests = significance or {}
    return [
        dataclasses.replace(
            figure(name, split.metrics[name], before.metrics.get(name) if before else None),
            interval=interval_text(name, split.intervals.get(name)),
            p_value=p_text(tests[name].p_value) if name in tests else "",
        )
        for name in dict.fromkeys([*METRICS, *split.metrics])
        if name in split.metrics
    ]


def figure(name: str, value: float, before: float | None) -> Figure:
    """One metric with its change."""
    if before is None:
        return Figure(label(name), metric_text(name, value))
    difference = value - before
    if not math.isfinite(difference) or metric_text(name, value) == metric_text(name, before):
        return Figure(label(name), metric_text(name, value), metric_text(name, before))
    sign = "+" if difference > 0 else "−"
    return Figure(
        label(name),
        metric_text(name, value),
        metric_text(name, before),
        f"{sign}{metric_text(name, abs(difference)).removesuffix(' %')}",
        None if name in NEUTRAL else (difference < 0) == (name in SMALLER_IS_BETTER),
    )


def resource_rows(resources: Resources) -> list[tuple[str, str]]:
    """What the model costs, as (what, how much)."""
    rows = [(training_label(name), training_text(name, value)) for name, value in resources.training.items()]
    rows += [
        ("Parameters", f"{count(resources.num_parameters)} ({resources.dtype})"),
        ("Size on disk", size(resources.size_on_disk_bytes)),
        ("Peak host memory (this evaluation)", size(resources.peak_host_bytes)),
        ("Peak GPU memory", size(resources.peak_gpu_bytes) if resources.peak_gpu_bytes else "no GPU"),
    ]
    if resources.latency_p50_s is not None and resources.latency_p95_s is not None:
        latency = f"{duration(resources.latency_p50_s)} / {duration(resources.latency_p95_s)}"
        rows.append((f"Latency p50 / p95 ({resources.num_latency_prompts} prompts, one at a time)", latency))
    rows += [
        (
            f"Batches of {point.batch_size}",
            f"{point.prompts_per_s:.2f} prompts/s, {point.tokens_per_s:.0f} tokens/s",
        )
        for point in resources.throughput
    ]
    return rows


def provenance_rows(result: EvaluationResult) -> list[tuple[str, str]]:
    """Where the figures come from."""
    rows = [(name.replace("_", " "), str(value)) for name, value in (result.artifact or {}).items()]
    rows += [(f"generation: {name}", str(value)) for name, value in result.generation.items()]
    rouge = result.evaluation
    stemming = "with stemming" if rouge.get("use_stemmer") else "without stemming"
    stop = ", stop words left out" if rouge.get("remove_stopwords") else ""
    return [
        *rows,
        ("ROUGE", f"rouge-score F1, {stemming}{stop}"),
        *((label(name), f"sacrebleu, {how}") for name, how in result.signatures.items()),
        *([("scorer", str(result.evaluation["scorer"]))] if result.evaluation.get("scorer") else []),
        ("intervals", _interval_note(result)),
    ]


def _interval_note(result: EvaluationResult) -> str:
    options = result.evaluation
    if not options.get("num_resamples"):
        return "none"
    return (
        f"percentile bootstrap over rows, {options['num_resamples']} resamples, seed {options['resampling_seed']}; "
        "p by approximate randomization, two-sided"
    )


def markdown_page(comparison: Comparison) -> str:
    """The report in Markdown."""
    result = comparison.result
    parts = [f"# {comparison.title}", comparison.subtitle]
    if result.random_init:
        parts.append("> **Random initialisation**: this model did not start from pretrained weights.")
    for split in result.splits:
        parts += _markdown_split(comparison, split)
    parts += ["## Resources", text_table(["what", "how much"], resource_rows(result.resources))]
    parts += ["## How this was measured", text_table(["what", "value"], provenance_rows(result))]
    return "\n\n".join(parts) + "\n"


def rows_text(split: SplitResult) -> str:
    """How many rows and tokens a split's figures stand on."""
    rows = (
        f"{split.num_rows} rows"
        if split.num_rows == split.num_rows_total
        else (f"{split.num_rows} of {split.num_rows_total} rows")
    )
    return f"{rows}, {split.num_target_tokens:,} target tokens"


def figure_cells(comparison: Comparison, split: SplitResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a split's table of metrics, for pages and terminals."""
    shown = comparison.figures(split)
    interval = f"{comparison.confidence} interval"
    if comparison.before(split) is None:
        return ["metric", "value", interval], [[row.name, row.value, row.interval] for row in shown]
    header = ["metric", "before", "after", interval, "change", "p"]
    return header, [[row.name, row.before, row.value, row.interval, row.change, row.p_value] for row in shown]


def _markdown_split(comparison: Comparison, split: SplitResult) -> list[str]:
    header, rows = figure_cells(comparison, split)
    parts = [f"## {split.name.capitalize()}", rows_text(split), text_table(header, rows)]
    parts += [f"> {warning}" for warning in split.warnings]
    for title, head, body in breakdowns(split):
        parts += [f"### {title}", text_table(head, body)]
    if not any(prediction.rougeL is not None for prediction in split.predictions):
        header, body = ["prompt", "continuation"], [[p.input, p.prediction] for p in split.predictions]
        return [*parts, "### Continuations", text_table(header, body)] if body else parts
    for name, chosen in (
        ("Best", split.best(comparison.num_examples())),
        ("Worst", split.worst(comparison.num_examples())),
    ):
        if chosen:
            parts += [
                f"### {name} predictions",
                text_table(["ROUGE-L", "input", "reference", "prediction"], _cells(chosen)),
            ]
    return parts


def _cells(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    return [(f"{p.rougeL or 0.0:.2f}", p.input, p.reference, p.prediction) for p in predictions]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; cells are plain text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    # A carriage return ends a line in Markdown, and a table with it.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    short = text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"
    return short.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
