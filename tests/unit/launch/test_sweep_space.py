"""Draws lie in their space, follow from the seed, and are not changed by further trials."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.config import Dimension, SweepConfig
from rayloom.launch.sweeping.space import clipped, draw_one, points, short_names

RANGES: list[dict[str, Any]] = [
    {"uniform": [-1.0, 2.0]},
    {"loguniform": [1e-5, 1e-1]},
    {"quniform": [0.1, 0.75, 0.2]},
    {"integer": [3, 5]},
    {"choice": [[1, 2], None, "a"]},
]


def config(**keys: Any) -> SweepConfig:
    return SweepConfig.model_validate({"config": "x", "space": {"a.b": {"uniform": [0, 1]}}, "num_trials": 4} | keys)


@pytest.mark.parametrize("values", RANGES, ids=lambda values: next(iter(values)))
@given(seed=st.integers())
def test_draws_lie_in_their_space(values, seed):
    dimension = Dimension.model_validate(values)
    value = draw_one(dimension, random.Random(seed))
    assert dimension.holds(value)
    assert clipped(dimension, value) == value


@given(value=st.floats(-1e6, 1e6))
@pytest.mark.parametrize("values", RANGES[:4], ids=lambda values: next(iter(values)))
def test_changed_values_come_back_into_their_space(values, value):
    dimension = Dimension.model_validate(values)
    assert dimension.holds(clipped(dimension, value))


def test_steps_are_kept():
    dimension = Dimension.model_validate({"quniform": [0.1, 0.75, 0.2]})
    assert {draw_one(dimension, random.Random(seed)) for seed in range(60)} == {0.1, 0.3, 0.5, 0.7}
    assert clipped(dimension, 0.74) == 0.7


def test_orders_of_magnitude_are_equally_likely():
    dimension = Dimension.model_validate({"loguniform": [1e-4, 1e-2]})
    drawn = [math.log10(draw_one(dimension, random.Random(seed))) for seed in range(2000)]
    assert 0.45 < sum(value < -3 for value in drawn) / len(drawn) < 0.55


def test_more_trials_only_add():
    few, many = points(config(num_trials=3)), points(config(num_trials=9))
    assert many[:3] == few
    assert len({str(point) for point in many}) == 9
    assert points(config(seed=1)) != points(config())


def test_warm_starts_come_first_and_grids_are_crossed():
    space = {"a.b": {"choice": [1, 2]}, "c": {"choice": ["x", "y"]}}
    assert points(config(space=space, search="grid", num_trials=None)) == [
        {"a.b": 1, "c": "x"},
        {"a.b": 1, "c": "y"},
        {"a.b": 2, "c": "x"},
        {"a.b": 2, "c": "y"},
    ]
    first = points(config(space=space, start_with=[{"a.b": 2, "c": "x"}]))
    assert first[0] == {"a.b": 2, "c": "x"}
    assert len(first) == 4
    crossed = points(config(space=space | {"c": {"grid": ["x", "y"]}}, num_trials=2))
    assert [point["c"] for point in crossed] == ["x", "y", "x", "y"]
    assert crossed[0]["a.b"] == crossed[1]["a.b"]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_grid_that_is_cut_short_is_not_gone_through_in_its_order(scheduler):
    asked = {"space": {"a": {"grid": list(range(6))}, "b": {"grid": [1, 2]}}, "search": "grid", "num_trials": None}
    whole, cut = points(config(**asked)), points(config(**asked, scheduler={scheduler: {}}))
    assert cut != whole
    assert sorted(cut, key=lambda point: (point["a"], point["b"])) == whole
    assert cut == points(config(**asked, scheduler={scheduler: {}}))
    assert cut != points(config(**asked, scheduler={scheduler: {}}, seed=1))


def test_names_are_short_where_they_stay_different():
    assert short_names(["training.seed", "lora.r"]) == {"training.seed": "seed", "lora.r": "r"}
    assert short_names(["a.seed", "b.seed"]) == {"a.seed": "a.seed", "b.seed": "b.seed"}
