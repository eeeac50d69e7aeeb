"""Settings of trials that do not depend on results: draws, and combinations of a grid."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

from rayloom.config import Dimension, SweepConfig

Point = dict[str, Any]
"""Settings of a trial by dotted key."""
_COMPARING = ("asha", "median")
"""Schedulers that stop a trial for what others did before it."""


def points(config: SweepConfig) -> list[Point]:
    """The settings of all trials of a random or grid search, in order.

    More trials only add to them: the first ones stay the same. Where a scheduler compares trials with those before
    them, a grid is gone through in an order drawn by the seed: of values in rising order, each might be better than
    all before it, and none would be stopped.

    Args:
        config: The sweep.
    """
    crossed = _crossed(config)
    others = {key: each for key, each in config.space.items() if key not in crossed}
    drawn = [dict(point) for point in config.start_with]
    draws = config.num_trials or 1
    drawn += [draw(others, seed=config.seed, number=number) for number in range(len(drawn), draws)]
    combinations = [dict(zip(crossed, values, strict=True)) for values in itertools.product(*crossed.values())]
    found = [{**point, **combination} for point in drawn for combination in combinations]
    if config.search == "grid" and config.scheduler.kind in _COMPARING:
        random.Random(f"{config.seed}/order").shuffle(found)
    return [{key: point[key] for key in config.space} for point in found]


def draw(space: dict[str, Dimension], *, seed: int, number: int) -> Point:
    """The settings of one draw: a pure function of seed, number and space."""
    return {key: draw_one(each, random.Random(f"{seed}/{number}/{key}")) for key, each in space.items()}


def draw_one(dimension: Dimension, source: random.Random) -> Any:
    """A value of one dimension."""
    if dimension.values is not None:
        return source.choice(dimension.values)
    low, high = dimension.bounds
    if dimension.integer is not None:
        return source.randint(int(low), int(high))
    if dimension.loguniform is not None:
        # Rounding may lead just past an end.
        return min(high, max(low, math.exp(source.uniform(math.log(low), math.log(high)))))
    if dimension.quniform is not None:
        step = dimension.quniform[2]
        count = math.floor((high - low) / step + 1e-9)
        return float(f"{low + step * source.randint(0, count):.12g}")
    return source.uniform(low, high)


def clipped(dimension: Dimension, value: Any) -> Any:
    """A value that was changed, put back into its dimension."""
    if dimension.values is not None:
        return value
    low, high = dimension.bounds
    value = min(max(value, low), high)
    if dimension.integer is not None:
        return round(value)
    if dimension.quniform is not None:
        step = dimension.quniform[2]
        count = min(round((value - low) / step), math.floor((high - low) / step + 1e-9))
        return float(f"{low + step * count:.12g}")
    return float(value)


def shown(value: Any) -> str:
    """A value as tables show it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(shown, value))
    return str(value)


def short_names(space: Sequence[str]) -> dict[str, str]:
    """Keys without their section, where that leaves them different."""
    lasts = [key.rsplit(".", 1)[-1] for key in space]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(space, lasts, strict=True)}


def _crossed(config: SweepConfig) -> dict[str, list[Any]]:
    """Keys that are tried with all their values."""
    is_grid = config.search == "grid"
    return {
        key: each.values or []
        for key, each in config.space.items()
        if each.grid is not None or (is_grid and each.choice is not None)
    }
