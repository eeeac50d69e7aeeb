from __future__ import annotations

from typing import Any

import pytest

from rayloom.serving.calls import Call, Problem, Prompt
from rayloom.serving.limits import Limits, refusal

LIMITS = Limits(60.0, 1000, 4, max_constraint_chars=50, max_listed=7, max_words=5)


def refused(**parameters: Any) -> Problem | None:
    return refusal([Call(Prompt("x"), parameters)], LIMITS)


@pytest.mark.parametrize(
    "parameters",
    [
        {"stop_strings": ["a" * 10] * 5},
        {"choice": ["a" * 50]},
        {"regex": "a" * 50},
        {"json_schema": {"type": "object", "properties": {}}},
        {"logit_bias": {"1": -100.0, "2": 0.5}},
        {"eos_token_id": 5},
        {"eos_token_id": [5, 6]},
        {"prefix": None},
    ],
    ids=str,
)
def test_constraints_that_are_taken(parameters: dict[str, Any]) -> None:
    assert refused(**parameters) is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stop_strings": ["a"] * 6}, "stop_strings has 6 entries; this server takes 5"),
        ({"required_words": ["a" * 26, "b" * 26]}, "required_words has 52 characters; this server takes 50"),
        ({"forbidden_words": ["a" * 51]}, "forbidden_words has 51 characters"),
        ({"regex": "a" * 51}, "regex has 51 characters"),
        ({"json_schema": {"type": "object", "description": "a" * 30}}, "json_schema has 67 characters"),
        ({"logit_bias": {str(place): 1.0 for place in range(8)}}, "logit_bias has 8 entries; this server takes 7"),
        ({"choice": ["a"] * 8}, "choice has 8 entries; this server takes 7"),
        ({"eos_token_id": [1] * 6}, "eos_token_id has 6 entries"),
        ({"prefix": "a" * 51}, "prefix has 51 characters"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_constraints_that_are_not(parameters: dict[str, Any], message: str) -> None:
    problem = refused(**parameters)
    assert problem is not None
    assert (problem.status, problem.type) == (400, "invalid_request")
    assert message in problem.message
    assert problem.param in parameters
