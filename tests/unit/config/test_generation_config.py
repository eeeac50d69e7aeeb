"""Generation parameters: merging, aliases and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayloom.config import GenerationConfig

beams = st.integers(1, 8)


def test_merged_changes_only_what_is_named() -> None:
    config = GenerationConfig(num_beams=4, max_new_tokens=32)
    merged = config.merged(max_new_tokens=8)
    assert (merged.num_beams, merged.max_new_tokens) == (4, 8)
    assert merged.model_fields_set == {"num_beams", "max_new_tokens"}
    assert config.max_new_tokens == 32


def test_merged_none_resets_to_the_default() -> None:
    merged = GenerationConfig(num_beams=4, early_stopping=True).merged(num_beams=None)
    assert merged.num_beams == 1
    assert merged.early_stopping is True


def test_merged_is_checked_as_a_whole() -> None:
    sampling = GenerationConfig(do_sample=True, temperature=0.7)
    with pytest.raises(ValidationError, match="do_sample"):
        sampling.merged(do_sample=False)
    assert sampling.merged(do_sample=False, temperature=None) == GenerationConfig()
    with pytest.raises(ValidationError, match="Extra inputs"):
        sampling.merged(temprature=0.1)


def test_num_generations_is_another_name() -> None:
    assert GenerationConfig.model_validate({"num_generations": 3, "num_beams": 3}).num_return_sequences == 3
    config = GenerationConfig(num_return_sequences=2, num_beams=4)
    assert config.merged(num_generations=4).num_return_sequences == 4
    assert config.merged(num_generations=None).num_return_sequences == 1
    with pytest.raises(ValidationError, match="same parameter"):
        config.merged(num_generations=3, num_return_sequences=4)


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0, "do_sample": True},
        {"top_p": 1.5, "do_sample": True},
        {"num_beams": 0},
        {"logprobs": 21},
        {"seed": -1},
        {"repetition_penalty": 0.0},
        {"length_penalty": float("nan")},
        {"exponential_decay_length_penalty": [3]},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerationConfig.model_validate(values)


@given(first=beams, second=beams, tokens=st.none() | st.integers(1, 99))
def test_merging_twice_is_merging_once(first: int, second: int, tokens: int | None) -> None:
    start = GenerationConfig(num_beams=first, max_new_tokens=tokens)
    assert start.merged(num_beams=second).merged(num_beams=first) == start.merged()
    assert GenerationConfig.model_validate(start.model_dump()) == start
