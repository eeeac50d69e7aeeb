"""What Tune decides with: searchers that propose settings, schedulers that stop trials or hand them over."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from rayloom.config import Dimension, SweepConfig
from rayloom.launch.sweeping.orders import SCORE, TRIAL
from rayloom.launch.sweeping.space import Point, clipped, draw_one

_ENDLESS = 10**9
"""ASHA's rungs go on for as long as a trial does: it is its own run that knows when it is done."""


class Proposals(Searcher):
    """Optuna's proposals, after those that were made in earlier sessions of the sweep.

    Args:
        config: The sweep.
        known: Trials of earlier sessions that are gone through again: number and settings. Optuna learns of their
            results as it would from new ones.
        used: How many numbers are taken, those of failed trials included.
        begun: Told of each proposal before it starts.
    """

    def __init__(
        self,
        config: SweepConfig,
        *,
        known: Iterable[tuple[int, Point]],
        used: int,
        begun: Callable[[int, Point], object],
    ) -> None:
        super().__init__(metric=SCORE, mode=config.direction)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = list(known)
        self._space, self._begun = config.space, begun
        self._numbers = deque([*(number for number, _ in known), *range(used, config.total_trials)])
        first = [*(point for _, point in known), *config.start_with[used:]]
        self._inner = OptunaSearch(
            space={key: distribution(each) for key, each in config.space.items()},
            metric=SCORE,
            mode=config.direction,
            points_to_evaluate=[_encoded(point, config.space) for point in first],
            sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=startup_trials(config.total_trials)),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """See `Searcher.suggest`."""
        if not self._numbers:
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own type forgets it
        proposed = self._inner.suggest(trial_id)
        number, values = self._numbers.popleft(), _decoded(proposed or {}, self._space)
        self._begun(number, values)
        return {TRIAL: {"number": number, "values": values}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """See `Searcher.on_trial_result`."""
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `Searcher.on_trial_complete`."""
        self._inner.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a sweep that goes on is made of its own state."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def startup_trials(total: int) -> int:
    """Random trials before Optuna's model is asked: its own ten would be most of a small sweep."""
    return min(10, max(3, total // 3))


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it. Choices go by their place, so that they may be lists."""
    if dimension.values is not None:
        return CategoricalDistribution(tuple(range(len(dimension.values))))
    low, high = dimension.bounds
    if dimension.integer is not None:
        return IntDistribution(int(low), int(high))
    if dimension.quniform is not None:
        step = dimension.quniform[2]
        return FloatDistribution(low, low + step * int((high - low) / step + 1e-9), step=step)
    return FloatDistribution(low, high, log=dimension.loguniform is not None)


def scheduler(config: SweepConfig) -> TrialScheduler:
    """The scheduler that a sweep asks for."""
    chosen, unit = config.scheduler, config.scheduler.unit
    if chosen.asha is not None:
        return AsyncHyperBandScheduler(
            time_attr=unit, grace_period=chosen.asha.grace, reduction_factor=chosen.asha.reduction, max_t=_ENDLESS
        )
    if chosen.median is not None:
        return MedianStoppingRule(
            time_attr=unit, grace_period=chosen.median.grace, min_samples_required=chosen.median.min_trials
        )
    if chosen.pbt is not None:
        source = random.Random(config.seed)
        random.seed(config.seed)  # Tune draws changes from Python's own source
        return PopulationBasedTraining(
            time_attr=unit,
            perturbation_interval=chosen.pbt.interval,
            quantile_fraction=chosen.pbt.quantile,
            resample_probability=chosen.pbt.resample,
            perturbation_factors=chosen.pbt.factors,
            hyperparam_mutations={
                TRIAL: {"values": {key: mutation(each, source) for key, each in config.space.items()}}
            },
            custom_explore_fn=partial(_kept_inside, space=config.space),
            log_config=False,
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def mutation(dimension: Dimension, source: random.Random) -> list[Any] | Callable[[], Any]:
    """How PBT draws a value anew: from a list (it may also go to a neighbour), or from a range."""
    return dimension.values if dimension.values is not None else partial(draw_one, dimension, source)


def _kept_inside(config: dict[str, Any], *, space: Mapping[str, Dimension]) -> dict[str, Any]:
    values = {key: clipped(space[key], value) for key, value in config[TRIAL]["values"].items()}
    return {**config, TRIAL: {**config[TRIAL], "values": values}}


def _encoded(point: Point, space: Mapping[str, Dimension]) -> Point:
    return {
        key: each.values.index(point[key]) if each.values is not None else point[key] for key, each in space.items()
    }


def _decoded(point: Point, space: Mapping[str, Dimension]) -> Point:
    return {key: each.values[point[key]] if each.values is not None else point[key] for key, each in space.items()}
