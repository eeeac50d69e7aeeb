"""From a measured split to its figures, each as sums over rows that can be resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from rayloom.evaluation.quality import self_bleu
from rayloom.evaluation.results import Prediction, SplitResult
from rayloom.evaluation.scores import distinct
from rayloom.evaluation.statistics import Floats, Measure

SMALLER_IS_BETTER = frozenset({"perplexity", "loss", "nll", "repetition", "self_bleu", "scorer_perplexity"})
"""Metrics of which less is better."""
_CORPUS = {"bleu": BLEU, "chrf": CHRF}
_FLUENCY = frozenset({"fluency_nll", "fluency_tokens"})
OWN_SCORES = SMALLER_IS_BETTER | _FLUENCY
"""Names beside those of the metrics in reports that mean something of their own here and in gates."""


def measures_of(split: SplitResult) -> dict[str, Measure]:
    """The figures of a split that are sums over its rows: perplexity, means of row scores, corpus BLEU and chrF.

    Perplexity is over the rows as they were encoded; all others are over the answered rows.
    """
    measures: dict[str, Measure] = {}
    if split.row_losses:
        sums_NK = np.asarray(split.row_losses, dtype=np.float64)
        measures |= {"loss": Measure(sums_NK, _mean, True), "perplexity": Measure(sums_NK, _perplexity, True)}
    return measures | prediction_measures([each for each in split.predictions if each.scores])


def prediction_measures(predictions: Sequence[Prediction]) -> dict[str, Measure]:
    """Figures of answered rows, see `measures_of`."""
    names = dict.fromkeys(name for each in predictions for name in each.scores)
    measures = {
        name: _mean_where_known(predictions, name) for name in names if name not in _CORPUS and name not in _FLUENCY
    }
    if names.keys() >= _FLUENCY:
        sums = [[each.scores["fluency_nll"], each.scores["fluency_tokens"]] for each in predictions]
        measures["scorer_perplexity"] = Measure(np.asarray(sums), _perplexity, True)
    if "rougeL" not in names:  # nothing to compare with: language modelling
        return measures
    texts, references = [each.prediction for each in predictions], [each.reference for each in predictions]
    return measures | {name: corpus_measure(name, texts, references) for name in _CORPUS}


def _mean_where_known(predictions: Sequence[Prediction], name: str) -> Measure:
    """The mean over rows that have the score; the others stay in, with nothing to add, so that rows can be paired."""
    sums = [[each.scores[name], 1.0] if name in each.scores else [0.0, 0.0] for each in predictions]
    return Measure(np.asarray(sums, dtype=np.float64), _mean, name in SMALLER_IS_BETTER)


def corpus_measure(name: str, predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """Corpus BLEU or chrF by sacrebleu, 0 to 100.

    Args:
        name: ``bleu`` or ``chrf``.
        predictions: What the model wrote.
        references: What it should have written.
    """
    metric = _metric(name)
    # sacrebleu's own bootstrap is made of these two; its public interface has only whole corpora.
    sums = metric._extract_corpus_statistics(list(predictions), [list(references)])

    def score(sums_K: Floats) -> float:
        return float(metric._compute_score_from_stats([round(each) for each in sums_K.tolist()]).score)

    return Measure(np.asarray(sums, dtype=np.float64), score)


def signatures() -> dict[str, str]:
    """How sacrebleu counts, in its own words, for papers and for whoever wants to compute the same."""
    texts = ["a"]
    found = {}
    for name, kind in _CORPUS.items():
        metric = kind(force=True) if name == "bleu" else kind()
        metric.corpus_score(texts, [texts])
        found[name] = str(metric.get_signature())
    return found


def whole_text_metrics(texts: Sequence[str]) -> dict[str, float]:
    """Figures of all answers together that are no sums over rows, so that they have no interval: distinct-n, self-BLEU.

    A resample holds rows twice, and would always look less diverse.
    """
    found = {f"distinct{size}": distinct(texts, size) for size in (1, 2)} | {"self_bleu": self_bleu(texts)}
    return {name: value for name, value in found.items() if value is not None}


@lru_cache
def _metric(name: str) -> Any:
    return BLEU(force=True) if name == "bleu" else CHRF()


def _mean(sums_K: Floats) -> float:
    return float(sums_K[0] / sums_K[1]) if sums_K[1] else math.nan


def _perplexity(sums_K: Floats) -> float:
    loss = _mean(sums_K)
    return math.exp(loss) if not loss > 700 else math.inf
