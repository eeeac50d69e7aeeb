from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from rayloom.serving.observing.records import clean_id


@given(st.text(st.characters(max_codepoint=0xFF), max_size=300))
def test_an_id_of_a_client_can_stand_in_a_log(given_id: str) -> None:
    cleaned = clean_id(given_id)
    assert len(cleaned) <= 128
    assert set(cleaned) <= set(string.ascii_letters + string.digits + "_.:/+=@-")


@given(st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=128))
def test_a_usual_id_stays_as_it_is(given_id: str) -> None:
    assert clean_id(given_id) == given_id
