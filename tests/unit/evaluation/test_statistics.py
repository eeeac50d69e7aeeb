from __future__ import annotations

import itertools

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from rayloom.errors import RequestError
from rayloom.evaluation.measures import corpus_measure
from rayloom.evaluation.statistics import (
    Measure,
    Resampling,
    compare_paired,
    intervals,
    mean_of,
    num_shared_rows,
)

WORDS = ["river", "sea", "north", "the", "a", "long", "flows", "into", "wide", "old"]


def texts(seed: int, count: int) -> tuple[list[str], list[str]]:
    """References, and answers that keep most of their words."""
    generator = np.random.default_rng(seed)
    references = [" ".join(generator.choice(WORDS, size=8)) for _ in range(count)]
    answers = [
        " ".join(word if generator.random() < 0.7 else str(generator.choice(WORDS)) for word in text.split())
        for text in references
    ]
    return answers, references


def test_intervals_of_a_mean_are_those_of_theory() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = intervals({"mean": mean_of(values)}, Resampling(4000))["mean"]
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for turn in range(200):
        sample = mean_of(generator.exponential(1.0, size=60))
        found = intervals({"mean": sample}, Resampling(300, 0.9, turn))["mean"]
        hits += found.low <= 1.0 <= found.high
    assert 0.82 <= hits / 200 <= 0.95  # 90 %, a little less for skewed data, and the noise of 200 trials


def test_corpus_bleu_has_the_interval_of_sacrebleus_own_bootstrap() -> None:
    answers, references = texts(3, 120)
    measure = corpus_measure("bleu", answers, references)
    theirs = BLEU().corpus_score(answers, [references], n_bootstrap=1000)
    ours = intervals({"bleu": measure}, Resampling(1000))["bleu"]
    assert measure.value == pytest.approx(theirs.score)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert (ours.high + ours.low) / 2 == pytest.approx(theirs._mean, abs=0.15 * theirs._ci)


def test_randomization_is_close_to_the_exact_permutation_test() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.normal(0.0, 1.0, 10), generator.normal(0.7, 1.0, 10)
    ahead = second - first
    flips = [float((ahead * signs).mean()) for signs in itertools.product((-1, 1), repeat=10)]
    two_sided = np.mean(np.abs(flips) >= abs(ahead.mean()) - 1e-12)
    worse = np.mean(np.asarray(flips) <= ahead.mean() + 1e-12)
    found = compare_paired(mean_of(first), mean_of(second), Resampling(6000))
    assert found.difference == pytest.approx(ahead.mean())
    assert found.p_value == pytest.approx(two_sided, abs=0.02)
    assert found.p_worse == pytest.approx(worse, abs=0.02)


@pytest.mark.parametrize("test", ["randomization", "bootstrap"])
def test_chance_alone_is_seldom_significant(test: str) -> None:
    generator = np.random.default_rng(5)
    p_values = [
        compare_paired(mean_of(generator.random(40)), mean_of(generator.random(40)), Resampling(200, seed=n), test=test)
        for n in range(150)
    ]
    assert 0.0 <= np.mean([found.p_value < 0.05 for found in p_values]) <= 0.11
    assert 0.35 <= np.mean([found.p_value < 0.5 for found in p_values]) <= 0.65


@pytest.mark.parametrize("test", ["randomization", "bootstrap"])
def test_a_real_difference_is_found_in_its_direction(test: str) -> None:
    answers, references = texts(6, 80)
    good, bad = corpus_measure("bleu", answers, references), corpus_measure("bleu", references[::-1], references)
    better = compare_paired(bad, good, Resampling(500), test=test)
    worse = compare_paired(good, bad, Resampling(500), test=test)
    assert better.difference == -worse.difference > 0
    assert better.p_value == pytest.approx(1 / 501)
    assert better.p_worse > 0.9
    assert worse.p_worse == pytest.approx(1 / 501)
    assert 0 < better.interval.low < better.difference < better.interval.high


def test_of_perplexity_less_is_better() -> None:
    generator = np.random.default_rng(7)
    low, high = generator.random(50), generator.random(50) + 1.0
    found = compare_paired(mean_of(low, smaller_is_better=True), mean_of(high, smaller_is_better=True), Resampling(300))
    assert found.difference > 0
    assert found.p_worse == pytest.approx(1 / 301)


def test_equal_systems_do_not_differ_and_equal_seeds_give_equal_figures() -> None:
    values = mean_of(np.random.default_rng(8).random(30))
    same = compare_paired(values, values, Resampling(200))
    assert (same.difference, same.p_value, same.interval.low, same.interval.high) == (0.0, 1.0, 0.0, 0.0)
    one, two, other = (intervals({"m": values}, Resampling(200, seed=seed))["m"] for seed in (1, 1, 2))
    assert one == two != other


def test_what_cannot_be_resampled_has_no_interval() -> None:
    infinite = Measure(np.ones((5, 2)), lambda sums: float("inf"))
    measures = {"one row": mean_of([1.0]), "infinite": infinite, "fine": mean_of([1.0, 2.0])}
    assert set(intervals(measures, Resampling(50))) == {"fine"}
    assert intervals(measures, Resampling(0)) == {}
    with pytest.raises(RequestError, match="the same rows twice"):
        compare_paired(mean_of([1.0, 2.0]), mean_of([1.0]), Resampling(50))
    with pytest.raises(RequestError, match="num_resamples"):
        compare_paired(mean_of([1.0, 2.0]), mean_of([1.0, 3.0]), Resampling(0))


def test_rows_without_the_score_are_not_counted_as_tested() -> None:
    scores = [[0.5, 1.0], [0.0, 0.0], [0.0, 1.0], [0.2, 1.0]]
    first = Measure(np.asarray(scores), lambda sums: float(sums[0] / sums[1]))
    second = Measure(np.asarray([*scores[:2], [0.0, 0.0], scores[3]]), first.score)
    assert num_shared_rows(first, second) == 2
    assert compare_paired(first, second, Resampling(1)).num_rows == 2


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("test", ["randomization", "bootstrap"])
def test_a_score_that_is_no_number_is_compared_without_a_word_of_numpy(odd: float, test: str) -> None:
    good = mean_of([1.0, 2.0, 3.0], smaller_is_better=True)
    found = compare_paired(good, mean_of([1.0, odd, 3.0], smaller_is_better=True), Resampling(50), test=test)
    assert not np.isfinite(found.difference)
    assert (found.p_value, found.p_worse) == (1.0, 1.0)
    assert intervals({"odd": mean_of([1.0, odd])}, Resampling(50)) == {}
