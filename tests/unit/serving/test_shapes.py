from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.serving.shapes import check_shape, shortened

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def nested(levels: int, *, opening: str, closing: str) -> Any:
    return json.loads(opening * levels + "1" + closing * levels)


@settings(max_examples=20)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_ordinary_bodies_pass(values: dict[str, Any]) -> None:
    check_shape(values)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_deep_ones_do_not(opening: str, closing: str) -> None:
    per_level = opening.count("[") + opening.count("{")
    check_shape({"x": nested(60 // per_level, opening=opening, closing=closing)})
    with pytest.raises(ValueError, match="more than 64 levels deep"):
        check_shape({"x": nested(64 // per_level, opening=opening, closing=closing)})
    with pytest.raises(ValueError, match="more than 64 levels deep"):
        check_shape({"x": nested(800 // per_level, opening=opening, closing=closing)})


def test_many_fields_and_halves_of_characters_do_not() -> None:
    check_shape({str(place): 1 for place in range(256)})
    with pytest.raises(ValueError, match="the body has 257 fields"):
        check_shape({str(place): 1 for place in range(257)})
    for values in ({"\ud800": 1}, {"x": "\ud800"}, {"x": [{"y": "a\udfff"}]}):
        with pytest.raises(ValueError, match="not valid Unicode"):
            check_shape(values)


@given(st.text(st.characters(), max_size=300))
def test_what_stands_in_messages_is_short_and_whole(text: str) -> None:
    shown = shortened(text)
    assert shown.encode().decode() == shown
    assert len(shown) <= 101
    if len(text) <= 100 and not any("\ud800" <= char <= "\udfff" for char in text):
        assert shown == text
