from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from rayloom.evaluation import exact_match, rouge_rows, text_metrics

PREDICTIONS = ["the cats were running quickly over hills", "Paris", "a wholly different answer", ""]
REFERENCES = ["a cat was running over the hills", "paris.", "nothing of the kind", "something"]


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_rouge_and_bleu_are_those_of_their_libraries(use_stemmer: bool) -> None:
    metrics = text_metrics(PREDICTIONS, REFERENCES, use_stemmer=use_stemmer)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer)
    scores = [scorer.score(reference, text) for text, reference in zip(PREDICTIONS, REFERENCES, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert metrics[name] == pytest.approx(sum(score[name].fmeasure for score in scores) / 4)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)
    assert metrics["exact_match"] == 0.25


def test_stop_words_can_be_left_out() -> None:
    (kept,) = rouge_rows(["the cat is on the mat"], ["the dog is on the mat"])
    (removed,) = rouge_rows(["the cat is on the mat"], ["the dog is on the mat"], remove_stopwords=True)
    assert kept["rouge1"] == pytest.approx(5 / 6)
    assert removed["rouge1"] == pytest.approx(1 / 2)
    (empty,) = rouge_rows(["the of"], ["is it"], remove_stopwords=True)
    assert empty["rougeL"] == 0


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert exact_match("The  Eiffel-Tower!", "eiffeltower")
    assert not exact_match("theatre", "atre")
    assert exact_match("", "the")


@given(
    st.lists(
        st.text(min_size=1, alphabet=st.characters(codec="ascii", categories=["L", "N", "Z"])),
        min_size=1,
        max_size=4,
    )
)
def test_equal_texts_match_and_scores_stay_in_range(texts: list[str]) -> None:
    metrics = text_metrics(texts, texts)
    assert metrics["exact_match"] == 1
    assert all(0 <= metrics[name] <= 1 for name in ("rouge1", "rouge2", "rougeL"))
    assert 0 <= metrics["bleu"] <= 100.0001


def test_no_rows_have_no_metrics() -> None:
    assert text_metrics([], []) == {}
