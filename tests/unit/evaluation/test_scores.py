from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from rayloom.errors import ConfigError
from rayloom.evaluation import custom_metrics
from rayloom.evaluation.custom_metrics import custom_scores, load_metrics
from rayloom.evaluation.measures import corpus_measure, signatures
from rayloom.evaluation.scores import distinct, repetition, row_scores, token_f1

TEXTS = st.lists(st.sampled_from(["sea", "river", "the", "North.", "into", "Café"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_corpus_scores_from_row_sums_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    answers, references = map(list, zip(*pairs, strict=True))
    for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        expected = metric.corpus_score(answers, [references]).score
        assert corpus_measure(name, answers, references).value == pytest.approx(expected)


def test_row_scores_are_those_of_their_libraries() -> None:
    answers = ["A wide river.\nIt flows north.", "nothing"]
    references = ["It flows to the north.\nThe river is wide.", "nothing at all"]
    scorer = rouge_scorer.RougeScorer(["rougeLsum", "rougeL"], use_stemmer=True)
    for scores, answer, reference in zip(row_scores(answers, references), answers, references, strict=True):
        expected = scorer.score(reference, answer)
        assert scores["rougeLsum"] == pytest.approx(expected["rougeLsum"].fmeasure)
        assert scores["rougeL"] == pytest.approx(expected["rougeL"].fmeasure)
        assert scores["chrf"] == pytest.approx(CHRF().sentence_score(answer, [reference]).score)
        assert scores["answer_words"] == len(answer.split())


def test_token_f1_is_squads() -> None:
    assert token_f1("the wide River", "a river, wide and old") == pytest.approx(2 * 2 / (2 + 4))
    assert token_f1("sea sea sea", "sea") == pytest.approx(2 * 1 / 4)
    assert token_f1("The", "a") == 1.0
    assert token_f1("", "sea") == token_f1("sea", "river") == 0.0


def test_repetition_and_distinct_count_ngrams() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("go on go on go on go on") == pytest.approx(3 / 5)
    assert repetition("all of it is new here") == repetition("too short") == 0.0
    assert distinct(["a b", "A c"], 1) == pytest.approx(3 / 4)
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["word"], 2) is None


def test_signatures_name_tokens_and_version() -> None:
    assert "tok:13a" in signatures()["bleu"]
    assert "version:" in signatures()["chrf"]


def test_custom_metrics_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("length", f"{__name__}:length", "rayloom.metrics"),
            EntryPoint("broken", "rayloom_nowhere:metric", "rayloom.metrics"),
        ]
    )
    monkeypatch.setattr(custom_metrics, "_installed", lambda: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.attr] if self.attr == "length" else 1 / 0)
    metrics = load_metrics(["length"])
    assert custom_scores(metrics, ["ab", "c"], ["", ""], [{}, {}]) == [{"length": 2.0}, {"length": 1.0}]
    with pytest.raises(ConfigError, match=r"no installed package brings the metric 'size'.*broken, length"):
        load_metrics(["size"])
    with pytest.raises(ConfigError, match="cannot be loaded: division by zero"):
        load_metrics(["broken"])


def length(predictions: list[str], references: list[str], rows: list[dict[str, object]]) -> list[float]:
    return [float(len(text)) for text in predictions]


@pytest.mark.parametrize("given_back", [[1.0], [1.0, float("nan")], None, 0.5, {0: 0.5, 1: 0.75}, "01", {0.0, 1.0}])
def test_a_custom_metric_gives_one_finite_number_for_each_row(given_back: object) -> None:
    with pytest.raises(ConfigError, match="the metric 'odd'"):
        custom_scores({"odd": lambda *_: given_back}, ["a", "b"], ["", ""], [{}, {}])


@pytest.mark.parametrize("name", ["rougeL", "bleu", "loss", "nll", "fluency_nll"])
def test_a_custom_metric_does_not_take_the_place_of_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name, f"{__name__}:length", "rayloom.metrics")
    monkeypatch.setattr(custom_metrics, "_installed", lambda: EntryPoints([point]))
    with pytest.raises(ConfigError, match=f"the metric '{name}' .* has the name of one of rayloom's own"):
        load_metrics([name])


def test_a_custom_metric_that_is_no_function_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = EntryPoints([EntryPoint("name", f"{__name__}:__name__", "rayloom.metrics")])
    monkeypatch.setattr(custom_metrics, "_installed", lambda: points)
    with pytest.raises(ConfigError, match="the metric 'name' .* is no function but of the type str"):
        load_metrics(["name"])
