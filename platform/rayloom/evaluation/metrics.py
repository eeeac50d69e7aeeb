"""Text metrics against references: ROUGE (rouge-score), BLEU (sacrebleu), exact match."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import sacrebleu

if TYPE_CHECKING:
    from rouge_score import tokenizers

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_STOPWORDS = frozenset(
    [
        "i",
        "me",
        "my",
        "myself",
        "we",
        "our",
        "ours",
        "ourselves",
        "you",
        "your",
        "yours",
        "yourself",
        "yourselves",
        "he",
        "him",
        "his",
        "himself",
        "she",
        "her",
        "hers",
        "herself",
        "it",
        "its",
        "itself",
        "they",
        "them",
        "their",
        "theirs",
        "themselves",
        "what",
        "which",
        "who",
        "whom",
        "this",
        "that",
        "these",
        "those",
        "am",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "have",
        "has",
        "had",
        "having",
        "do",
        "does",
        "did",
        "doing",
        "a",
        "an",
        "the",
        "and",
        "but",
        "if",
        "or",
        "because",
        "as",
        "until",
        "while",
        "of",
        "at",
        "by",
        "for",
        "with",
        "about",
        "against",
        "between",
        "into",
        "through",
        "during",
        "before",
        "after",
        "above",
        "below",
        "to",
        "from",
        "up",
        "down",
        "in",
        "out",
        "on",
        "off",
        "over",
        "under",
        "again",
        "further",
        "then",
        "once",
        "here",
        "there",
        "when",
        "where",
        "why",
        "how",
        "all",
        "any",
        "both",
        "each",
        "few",
        "more",
        "most",
        "other",
        "some",
        "such",
        "no",
        "nor",
        "not",
        "only",
        "own",
        "same",
        "so",
        "than",
        "too",
        "very",
        "s",
        "t",
        "can",
        "will",
        "just",
        "don",
        "should",
        "now",
    ]
)
"""The English list of NLTK (which would have to download it)."""


def text_metrics(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    use_stemmer: bool = True,
    remove_stopwords: bool = False,
) -> dict[str, float]:
    """Metrics over all rows.

    Args:
        predictions: What the model wrote.
        references: What it should have written, one for each prediction.
        use_stemmer: ROUGE compares Porter stems.
        remove_stopwords: ROUGE leaves common English words out.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``: mean F1 in 0 to 1; ``bleu``: corpus BLEU in 0 to 100 (13a tokens);
        ``exact_match``: share of rows in 0 to 1.
    """
    assert len(predictions) == len(references), "one reference for each prediction"
    if not predictions:
        return {}
    rows = rouge_rows(predictions, references, use_stemmer=use_stemmer, remove_stopwords=remove_stopwords)
    metrics = {name: sum(row[name] for row in rows) / len(rows) for name in ROUGE_TYPES}
    # force: no advice about text that looks tokenised already.
    metrics["bleu"] = float(sacrebleu.corpus_bleu(list(predictions), [list(references)], force=True).score)
    metrics["exact_match"] = sum(map(exact_match, predictions, references)) / len(predictions)
    return metrics


def rouge_rows(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    use_stemmer: bool = True,
    remove_stopwords: bool = False,
    summary: bool = False,
) -> list[dict[str, float]]:
    """ROUGE F1 of each row, in 0 to 1. See `text_metrics`.

    Args:
        predictions: What the model wrote.
        references: What it should have written, one for each prediction.
        use_stemmer: Compare Porter stems.
        remove_stopwords: Leave common English words out.
        summary: ``rougeLsum`` as well, which takes each line as a sentence.
    """
    from rouge_score import rouge_scorer  # with nltk, which takes most of a second: every training worker imports us

    types = [*ROUGE_TYPES, *(["rougeLsum"] if summary else [])]
    scorer = rouge_scorer.RougeScorer(
        types,
        tokenizer=_RougeTokenizer(use_stemmer=use_stemmer, remove_stopwords=remove_stopwords),
    )
    scores = (scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True))
    return [{name: float(score[name].fmeasure) for name in types} for score in scores]


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two answers are equal after SQuAD's normalisation (Rajpurkar et al., 2016)."""
    return normalise_answer(prediction) == normalise_answer(reference)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


class _RougeTokenizer:
    """A tokenizer of rouge-score: its own tokens, stop words left out if asked for (before stemming)."""

    def __init__(self, *, use_stemmer: bool, remove_stopwords: bool) -> None:
        self._plain, self._stemming = _tokenizer(use_stemmer=False), _tokenizer(use_stemmer=use_stemmer)
        self._remove_stopwords = remove_stopwords

    def tokenize(self, text: str) -> list[str]:
        """Words as ROUGE counts them."""
        if self._remove_stopwords:
            text = " ".join(word for word in self._plain.tokenize(text) if word not in _STOPWORDS)
        tokens: list[str] = self._stemming.tokenize(text)
        return tokens


@lru_cache
def _tokenizer(*, use_stemmer: bool) -> tokenizers.DefaultTokenizer:
    from rouge_score import tokenizers

    return tokenizers.DefaultTokenizer(use_stemmer)
