"""How sure a figure is: bootstrap intervals, and paired tests between two systems on the same rows.

Every figure is a function of sums over rows (a mean: sum of scores and number of rows; corpus BLEU: matches and
lengths). So a row's contribution is computed once, and a thousand resamples are one matrix product.

Shape letters: N rows, K sums that a figure is made of, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rayloom.errors import RequestError

Floats = npt.NDArray[np.float64]
PairedTest = Literal["randomization", "bootstrap"]
_CELLS = 4_000_000  # of the weights that are in memory at once


@dataclass(frozen=True)
class Measure:
    """A figure over rows.

    Attributes:
        sums_NK: What each row adds.
        score: From the sums (K) to the figure.
        smaller_is_better: Of perplexity and its like.
    """

    sums_NK: Floats
    score: Callable[[Floats], float]
    smaller_is_better: bool = False

    @property
    def value(self) -> float:
        """The figure over all rows."""
        return self.score(self.sums_NK.sum(axis=0))

    @property
    def num_rows(self) -> int:
        """Rows that it is made of."""
        return len(self.sums_NK)

    @property
    def is_known_N(self) -> npt.NDArray[np.bool_]:  # noqa: N802 - shape letters
        """Which rows have the score (N): the others add nothing to any sum."""
        known_N: npt.NDArray[np.bool_] = np.any(self.sums_NK != 0, axis=1)
        return known_N


def mean_of(scores: Any, *, smaller_is_better: bool = False) -> Measure:
    """The mean of one score per row.

    Args:
        scores: Numbers (N).
        smaller_is_better: Whether less is better.
    """
    values_N = np.asarray(scores, dtype=np.float64)
    return Measure(np.stack([values_N, np.ones_like(values_N)], axis=1), _ratio, smaller_is_better)


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two systems on the same rows.

    Attributes:
        difference: Second minus first.
        interval: Of the difference, by paired bootstrap.
        p_value: Probability of a difference this large, in either direction, if the two were equally good.
        p_worse: Probability of a loss this large if they were (one-sided); small for a second system that is worse.
        num_rows: Rows on which both have the score.
    """

    difference: float
    interval: Interval
    p_value: float
    p_worse: float
    num_rows: int


@dataclass(frozen=True)
class Resampling:
    """How resamples are drawn.

    Attributes:
        num_resamples: Their number (B).
        confidence: Of intervals, such as 0.95.
        seed: Equal seeds draw equal resamples.
    """

    num_resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def intervals(measures: Mapping[str, Measure], how: Resampling) -> dict[str, Interval]:
    """Percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13) of several figures of the same rows.

    Args:
        measures: Figures by name.
        how: Number, confidence and seed.

    Returns:
        By name. Figures of a single row have none, and neither have those that are not finite.
    """
    found = {}
    for num_rows in {measure.num_rows for measure in measures.values()}:
        group = {name: measure for name, measure in measures.items() if measure.num_rows == num_rows}
        if num_rows < 2 or how.num_resamples == 0:
            continue
        with _not_finite_is_silent():
            drawn = _resampled(group, num_rows, how)
        for name, values_B in drawn.items():
            if np.isfinite(values_B).all():
                found[name] = _percentiles(values_B, how.confidence)
    return {name: found[name] for name in measures if name in found}


def compare_paired(first: Measure, second: Measure, how: Resampling, *, test: PairedTest = "randomization") -> Paired:
    """Whether the second system differs from the first, row by row.

    Args:
        first: A figure of the first system.
        second: The same figure of the second, over the same rows in the same order.
        how: Number of resamples, confidence of the interval, seed.
        test: ``randomization`` swaps the systems' outputs row by row (Noreen, 1989; Riezler and Maxwell, 2005), and
            assumes nothing else; ``bootstrap`` draws rows (Koehn, 2004) and centres their differences.

    Raises:
        RequestError: The rows are not the same in number, or fewer than two; or no resamples are asked for.
    """
    if first.num_rows != second.num_rows or first.num_rows < 2:
        raise RequestError(
            f"a paired test needs the same rows twice, two at least: there are {first.num_rows} and {second.num_rows}"
        )
    if how.num_resamples < 1:
        raise RequestError("a paired test needs resamples: set evaluation.num_resamples above 0")
    with _not_finite_is_silent():
        drawn = _resampled({"first": first, "second": second}, first.num_rows, how)
        differences_B = drawn["second"] - drawn["first"]
        found = second.value - first.value
        chance_B = differences_B - differences_B.mean() if test == "bootstrap" else _swapped(first, second, how)
        interval = _percentiles(differences_B, how.confidence)
    loss, losses_B = (-found, -chance_B) if first.smaller_is_better else (found, chance_B)
    # Rounding must not make a shuffle that changes nothing look smaller than what was found.
    slack = 1e-9 * max(1.0, abs(found))
    return Paired(
        difference=found,
        interval=interval,
        # Written so that a draw without a value (no row of it has the score) counts against a difference.
        p_value=_share(~(np.abs(chance_B) < abs(found) - slack)),
        p_worse=_share(~(losses_B > loss + slack)),
        num_rows=num_shared_rows(first, second),
    )


def num_shared_rows(first: Measure, second: Measure) -> int:
    """Rows on which both have the score: a paired test knows nothing of the others.

    Args:
        first: A figure of one system.
        second: The same figure of another, over the same rows in the same order.
    """
    return int(np.count_nonzero(first.is_known_N & second.is_known_N))


def _ratio(sums_K: Floats) -> float:
    return float(sums_K[0] / sums_K[1])


def _not_finite_is_silent() -> np.errstate:
    """What a row without a finite score makes of a figure is in the figure; numpy need not warn of it."""
    return np.errstate(invalid="ignore")


def _share(hits_B: npt.NDArray[np.bool_]) -> float:
    # The data as they are count as one of the draws: a p-value is never 0.
    return float((np.count_nonzero(hits_B) + 1) / (len(hits_B) + 1))


def _percentiles(values_B: Floats, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values_B, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _resampled(measures: Mapping[str, Measure], num_rows: int, how: Resampling) -> dict[str, Floats]:
    """Each figure on each resample (B); the same resamples for all."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for weights_BN in _draws(num_rows, how):
        for name, measure in measures.items():
            values[name] += [measure.score(sums_K) for sums_K in weights_BN @ measure.sums_NK]
    return {name: np.asarray(scores) for name, scores in values.items()}


def _draws(num_rows: int, how: Resampling) -> Iterator[Floats]:
    """How often each row stands in each resample, some resamples at a time."""
    generator = np.random.default_rng(how.seed)
    for size in _parts(num_rows, how.num_resamples):
        yield generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size).astype(np.float64)


def _swapped(first: Measure, second: Measure, how: Resampling) -> Floats:
    """Differences (B) after the outputs of half the rows, drawn anew each time, have changed sides."""
    generator = np.random.default_rng(how.seed)
    ahead_NK = second.sums_NK - first.sums_NK
    first_K, second_K = first.sums_NK.sum(axis=0), second.sums_NK.sum(axis=0)
    found: list[float] = []
    for size in _parts(first.num_rows, how.num_resamples):
        moved_BK = generator.integers(0, 2, size=(size, first.num_rows)).astype(np.float64) @ ahead_NK
        found += [second.score(second_K - moved_K) - first.score(first_K + moved_K) for moved_K in moved_BK]
    return np.asarray(found)


def _parts(num_rows: int, num_resamples: int) -> Iterator[int]:
    most = max(1, _CELLS // num_rows)
    for start in range(0, num_resamples, most):
        yield min(most, num_resamples - start)
