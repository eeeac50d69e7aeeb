"""A caller's parameters on top of a model's own."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.generation import parse_parameters

DEFAULTS = GenerationConfig(min_new_tokens=5, stop_strings=["###"], required_words=["so"], regex="a+", seed=3)


@pytest.mark.parametrize(
    ("params", "gone"),
    [
        ({"max_new_tokens": 4}, {"min_new_tokens"}),
        ({"max_new_tokens": 5}, set()),
        ({"max_length": 3}, set()),
        ({"json_schema": {"type": "object"}}, {"min_new_tokens", "stop_strings", "required_words", "regex"}),
        ({"choice": ["a"], "min_new_tokens": 2}, {"stop_strings", "required_words", "regex"}),
        ({"temperature": 0.5, "do_sample": True}, set()),
    ],
)
def test_defaults_give_way_to_what_they_contradict(params: dict[str, Any], gone: set[str]) -> None:
    found = parse_parameters(DEFAULTS, params)
    kept = {name: value for name, value in DEFAULTS.model_dump(exclude_unset=True).items() if name not in gone}
    assert found.model_dump(exclude_unset=True) == kept | params


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens 5 exceeds max_new_tokens 4"),
        ({"max_new_tokens": "many"}, "max_new_tokens: .* valid integer"),
        ({"choice": ["a"], "json_schema": {}}, "both decide the whole answer"),
    ],
)
def test_a_callers_own_contradictions_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_parameters(DEFAULTS, params)
