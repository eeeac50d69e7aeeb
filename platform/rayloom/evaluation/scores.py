"""Scores of single rows: ROUGE, exact match, token F1, chrF, length, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics import CHRF

from rayloom.evaluation.metrics import exact_match, normalise_answer, rouge_rows

REPEATED_WORDS = 4
"""Length of the n-grams that `repetition` counts."""


def row_scores(
    predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True, remove_stopwords: bool = False
) -> list[dict[str, float]]:
    """All scores of each row against its reference.

    Args:
        predictions: What the model wrote.
        references: What it should have written, one for each prediction.
        use_stemmer: ROUGE compares Porter stems.
        remove_stopwords: ROUGE leaves common English words out.

    Returns:
        For each row ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``, ``exact_match``, ``token_f1``, ``repetition``
        (0 to 1), ``chrf`` (0 to 100) and ``answer_words``.
    """
    rouge = rouge_rows(
        predictions, references, use_stemmer=use_stemmer, remove_stopwords=remove_stopwords, summary=True
    )
    chrf = CHRF()
    return [
        scores
        | {
            "exact_match": float(exact_match(text, reference)),
            "token_f1": token_f1(text, reference),
            "chrf": float(chrf.sentence_score(text, [reference]).score),
            "answer_words": float(len(text.split())),
            "repetition": repetition(text),
        }
        for scores, text, reference in zip(rouge, predictions, references, strict=True)
    ]


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, as SQuAD's script has it (Rajpurkar et al., 2016), in 0 to 1.

    Two texts without a word (after normalisation) are equal.
    """
    found, wanted = normalise_answer(prediction).split(), normalise_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def repetition(text: str) -> float:
    """Share of a text's word 4-grams that stood in it before (seq-rep-4, Welleck et al., 2020), in 0 to 1.

    A text of fewer than four words repeats nothing.
    """
    grams = ngrams(text, REPEATED_WORDS)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[str], size: int) -> float | None:
    """Different n-grams of all texts over all of their n-grams (distinct-n, Li et al., 2016), in 0 to 1.

    Args:
        texts: What was written.
        size: Words of an n-gram.

    Returns:
        None where no text is that long.
    """
    grams = [gram for text in texts for gram in ngrams(text, size)]
    return len(set(grams)) / len(grams) if grams else None


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """Runs of words, case ignored, in order."""
    words = text.lower().split()
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
