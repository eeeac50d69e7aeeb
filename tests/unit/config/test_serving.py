"""Several models, adapters and routes in one serving config."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.config import AutoscalingConfig, ServingConfig, validate
from rayloom.errors import ConfigError

TWO = {"a": {"artifact": "x"}, "b": {"artifact": "y", "num_cpus": 3, "adapters": {"fr": "z"}}}


def config_of(**values: Any) -> ServingConfig:
    return validate(ServingConfig, values)


def test_a_single_model_is_served_under_the_name_that_its_artifact_says() -> None:
    config = config_of(artifact="x", num_cpus=2, routes={})
    assert dict(config.served()) == {"": config}
    assert list(config_of(artifact="x", name="qa").served()) == ["qa"]


def test_what_stands_beside_models_holds_for_each_unless_it_says_otherwise() -> None:
    served = config_of(models=TWO, num_cpus=2, max_batch_size=4, request_timeout_s=7).served()
    assert [(each.name, each.artifact, each.num_cpus) for each in served.values()] == [("a", "x", 2), ("b", "y", 3)]
    assert {each.max_batch_size for each in served.values()} == {4}
    assert {each.request_timeout_s for each in served.values()} == {7}
    assert served["b"].adapters == {"fr": "z"}
    assert not any(each.models or each.routes for each in served.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give an artifact, or models"),
        ({"artifact": "x", "models": TWO}, "give an artifact, or models"),
        ({"models": TWO, "name": "c"}, "name is a single model's"),
        ({"models": TWO, "adapters": {"c": "d"}}, "adapters is a single model's"),
        ({"models": {"a/../b": {"artifact": "x"}}}, "'a/../b' cannot be a model's name"),
        ({"models": {"": {"artifact": "x"}}}, "'' cannot be a model's name"),
        ({"models": {**TWO, "fr": {"artifact": "x"}}}, "'fr' is given twice"),
        ({"models": TWO, "routes": {"a": {"split": {"b": 1}}}}, "'a' is given twice"),
        (
            {"models": TWO, "routes": {"r": {"split": {"a": 0.5, "c": 0.5}}}},
            r"there is no model 'c'; there are: a, b, fr",
        ),
        ({"models": TWO, "routes": {"r": {"split": {"a": 1}, "shadow": "r"}}}, "there is no model 'r'"),
        ({"models": TWO, "routes": {"r": {"split": {"a": 0.5, "b": 0.4}}}}, "sum up to 0.9"),
        ({"models": TWO, "routes": {"r": {"split": {"a": 1.5, "b": -0.5}}}}, "cannot be negative"),
        ({"models": TWO, "routes": {"r": {"split": {}}}}, "split"),
        ({"artifact": "x", "autoscaling": {"target_slots": 0.5}}, "give target_tokens, too"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**values)


def test_routes_may_name_models_and_adapters() -> None:
    routes = {"r": {"split": {"a": 0.25, "fr": 0.75, "b": 0}, "shadow": "b"}}
    assert config_of(models=TWO, routes=routes).routes["r"].shadow == "b"


def test_scaling_by_tokens_is_an_option() -> None:
    assert AutoscalingConfig(target_tokens=100, target_slots=0.5).target_slots == 0.5
