"""Figures as people read them: names of metrics, percent, bytes, seconds."""

from __future__ import annotations

import math

from rayloom.evaluation.results import Spread

METRICS = {
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "bleu": "BLEU",
    "exact_match": "Exact match",
    "perplexity": "Perplexity",
    "loss": "Loss per token",
    "rougeLsum": "ROUGE-Lsum",
    "chrf": "chrF",
    "token_f1": "Token F1",
    "answer_words": "Words per answer",
    "repetition": "Repetition",
    "distinct1": "Distinct-1",
    "distinct2": "Distinct-2",
    "self_bleu": "Self-BLEU",
    "relevance": "Relevance",
    "coherence": "Coherence",
    "scorer_perplexity": "Fluency (perplexity)",
}
NEUTRAL = frozenset({"answer_words"})
"""Metrics of which neither more nor less is better."""
_NUMBERS = frozenset({"bleu", "chrf", "perplexity", "loss", "answer_words", "scorer_perplexity"})
_PERCENT = frozenset(METRICS) - _NUMBERS


def label(name: str) -> str:
    """A metric's name for people; a custom metric's own."""
    return METRICS.get(name, name)


def metric_text(name: str, value: float) -> str:
    """A metric as people read it: shares in percent."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if name in _PERCENT:
        return f"{100 * value:.1f} %"
    if name == "loss" or name not in METRICS:
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 10_000 else f"{value:.3g}"


def margin_text(name: str, value: float) -> str:
    """How far two values of a metric are apart: of shares in points, for one percent more is something else."""
    return metric_text(name, value).replace(" %", " points")


def shown_value(name: str, value: float) -> float:
    """A metric on the scale that people read it on: shares in percent."""
    return 100 * value if name in _PERCENT else value


def interval_text(name: str, spread: Spread | None) -> str:
    """Both ends of an interval in the metric's unit."""
    if spread is None:
        return ""
    low, high = (metric_text(name, end).removesuffix(" %") for end in (spread.low, spread.high))
    return f"{low} to {high}"


def p_text(p_value: float) -> str:
    """A p-value with the digits that mean something."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


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


def training_label(name: str) -> str:
    """What a figure of training is."""
    return _TRAINING.get(name, name)


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


def count(number: int | None) -> str:
    """A number of parameters: 60.5 M."""
    if number is None:
        return "not known"
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
