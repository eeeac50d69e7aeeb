"""The figures of a report as rows of text, and the Markdown page made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayloom.evaluation.results import EvaluationResult, Prediction, Resources, SplitResult

METRICS = {
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "bleu": "BLEU",
    "exact_match": "Exact match",
    "perplexity": "Perplexity",
    "loss": "Loss per token",
}
_SMALLER_IS_BETTER = ("perplexity", "loss")
_PERCENT = ("rouge1", "rouge2", "rougeL", "exact_match")
_CELL_CHARS = 300


@dataclass(frozen=True)
class Comparison:
    """A result and, where measured, that of the untuned model."""

    result: EvaluationResult
    baseline: EvaluationResult | None = None

    def before(self, split: SplitResult) -> SplitResult | None:
        """The untuned model on the same split."""
        splits = self.baseline.splits if self.baseline else []
        return next((each for each in splits if each.name == split.name), None)

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
        is_better: Whether the change is for the better; None if there is none.
    """

    name: str
    value: str
    before: str = ""
    change: str = ""
    is_better: bool | None = None


def figures(split: SplitResult, before: SplitResult | None) -> list[Figure]:
    """All metrics of a split in a fixed order."""
    return [
        figure(name, split.metrics[name], before.metrics.get(name) if before else None)
        for name in METRICS
        if name in split.metrics
    ]


def figure(name: str, value: float, before: float | None) -> Figure:
    """One metric with its change."""
    if before is None:
        return Figure(METRICS[name], metric_text(name, value))
    difference = value - before
    if not math.isfinite(difference) or metric_text(name, value) == metric_text(name, before):
        return Figure(METRICS[name], metric_text(name, value), metric_text(name, before))
    sign = "+" if difference > 0 else "−"
    return Figure(
        METRICS[name],
        metric_text(name, value),
        metric_text(name, before),
        f"{sign}{metric_text(name, abs(difference)).removesuffix(' %')}",
        (difference < 0) == (name in _SMALLER_IS_BETTER),
    )


def metric_text(name: str, value: float) -> str:
    """A metric as people read it: shares in percent."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if name in _PERCENT:
        return f"{100 * value:.1f} %"
    if name == "loss":
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 10_000 else f"{value:.3g}"


def resource_rows(resources: Resources) -> list[tuple[str, str]]:
    """What the model costs, as (what, how much)."""
    rows = [(_TRAINING.get(name, name), training_text(name, value)) for name, value in resources.training.items()]
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


_TRAINING = {
    "train_s": "Training time",
    "train_tokens": "Tokens trained on",
    "train_tokens_per_s": "Training speed",
    "tokens_per_s": "Training speed",
    "peak_host_bytes": "Peak host memory (training)",
    "peak_gpu_bytes": "Peak GPU memory (training)",
    "step": "Steps",
    "epoch": "Epochs",
}


def training_text(name: str, value: float) -> str:
    """A figure of training in its unit."""
    if name.endswith("_per_s"):
        return f"{value:,.0f} tokens/s"
    if name.endswith("_bytes"):
        return size(int(value))
    if name.endswith("_s"):
        return duration(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def size(num_bytes: int | None) -> str:
    """Bytes in binary units."""
    if num_bytes is None:
        return "not known"
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def count(number: int) -> str:
    """A number of parameters: 60.5 M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


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
        ("BLEU", "sacrebleu corpus BLEU, 13a tokens"),
    ]


def markdown_page(comparison: Comparison) -> str:
    """The report in Markdown."""
    result = comparison.result
    parts = [f"# {comparison.title}", comparison.subtitle]
    if result.random_init:
        parts.append("> **Random initialisation**: this model did not start from pretrained weights.")
    for split in result.splits:
        parts += _markdown_split(comparison, split)
    parts += ["## Resources", _table(["what", "how much"], resource_rows(result.resources))]
    parts += ["## How this was measured", _table(["what", "value"], provenance_rows(result))]
    return "\n\n".join(parts) + "\n"


def rows_text(split: SplitResult) -> str:
    """How many rows and tokens a split's figures stand on."""
    rows = (
        f"{split.num_rows} rows"
        if split.num_rows == split.num_rows_total
        else (f"{split.num_rows} of {split.num_rows_total} rows")
    )
    return f"{rows}, {split.num_target_tokens:,} target tokens"


def _markdown_split(comparison: Comparison, split: SplitResult) -> list[str]:
    before = comparison.before(split)
    rows = figures(split, before)
    if before is None:
        table = _table(["metric", "value"], [(row.name, row.value) for row in rows])
    else:
        table = _table(
            ["metric", "before", "after", "change"],
            [(row.name, row.before, row.value, row.change) for row in rows],
        )
    parts = [f"## {split.name.capitalize()}", rows_text(split), table]
    parts += [f"> {warning}" for warning in split.warnings]
    if not any(prediction.rougeL is not None for prediction in split.predictions):
        header, body = ["prompt", "continuation"], [(p.input, p.prediction) for p in split.predictions]
        return [*parts, "### Continuations", _table(header, body)] if body else parts
    for name, chosen in (
        ("Best", split.best(comparison.num_examples())),
        ("Worst", split.worst(comparison.num_examples())),
    ):
        if chosen:
            parts += [
                f"### {name} predictions",
                _table(["ROUGE-L", "input", "reference", "prediction"], _cells(chosen)),
            ]
    return parts


def _cells(predictions: Sequence[Prediction]) -> list[tuple[str, ...]]:
    return [(f"{p.rougeL or 0.0:.2f}", p.input, p.reference, p.prediction) for p in predictions]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    short = text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"
    return short.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
