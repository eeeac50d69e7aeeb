from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.config import GenerationConfig
from rayloom.serving.page.settings import CONTROLS, Control, Settings


def settings(uses_own: bool = False, **values: float) -> Settings:
    return Settings(uses_own, tuple(values.get(each.parameter, each.start) for each in CONTROLS))


def test_the_models_own_settings_send_nothing() -> None:
    assert Settings().parameters() == {}
    assert settings(uses_own=True, temperature=1.5).parameters() == {}


def test_what_has_no_effect_is_left_out() -> None:
    assert settings().parameters() == {"do_sample": False, "max_new_tokens": 128}
    assert settings(top_p=0.5, top_k=5).parameters() == {"do_sample": False, "max_new_tokens": 128}


@pytest.mark.parametrize(
    ("values", "sent"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"temperature": 1.0, "top_k": 40.0}, {"do_sample": True, "temperature": 1.0, "top_k": 40}),
        ({"num_beams": 4.0, "length_penalty": 0.5}, {"do_sample": False, "num_beams": 4, "length_penalty": 0.5}),
        ({"length_penalty": 0.5}, {"do_sample": False}),
        ({"repetition_penalty": 1.2}, {"do_sample": False, "repetition_penalty": 1.2}),
    ],
)  # fmt: skip
def test_sliders_become_parameters(values: dict[str, float], sent: dict[str, Any]) -> None:
    found = settings(**values).parameters()
    assert found == {"max_new_tokens": 128, **sent}
    assert all(type(found[name]) is type(value) for name, value in sent.items())


def test_seed_and_stops_hold_with_the_models_own_settings_too() -> None:
    assert Settings(True, seed=" 7 ", stops="one\n\ntwo\n").parameters() == {"seed": 7, "stop_strings": ["one", "two"]}
    assert Settings(seed="seven").parameters() == {"seed": "seven"}  # which the service refuses


def positions(control: Control) -> st.SearchStrategy[float]:
    last = round((control.high - control.low) / control.step)
    return st.integers(0, last).map(lambda place: round(control.low + place * control.step, 6))


@given(st.tuples(*map(positions, CONTROLS)))
def test_no_position_of_the_sliders_is_refused(values: tuple[float, ...]) -> None:
    GenerationConfig.model_validate(Settings(False, values).parameters())


def test_every_slider_has_its_help_from_the_config() -> None:
    assert all(each.help for each in CONTROLS)
    assert len({each.parameter for each in CONTROLS}) == len(CONTROLS)
