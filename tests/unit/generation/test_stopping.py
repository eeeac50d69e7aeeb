from __future__ import annotations

import random

import pytest
import torch
from transformers.generation.stopping_criteria import StopStringCriteria

from rayloom.errors import RequestError
from rayloom.generation.stopping import StopStrings
from tests.unit.generation.tokenizers import KINDS, WRITTEN, tokenizer_of


def random_stops(rng: random.Random, tokenizer, ids: list[int]) -> list[str]:
    """Mostly cuts out of what will be written, so that they are met at all sorts of borders."""
    stops = []
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(ids))
        text = tokenizer.decode(ids[at : at + rng.randint(1, 5)])
        first = rng.randrange(max(len(text), 1))
        cut = text[first : first + rng.randint(1, 8)].replace("\ufffd", "")
        stops.append(cut or rng.choice(["e", "日本", "é c", "😀", "xyzzy", " "]))
    return stops


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_stop_where_those_of_transformers_do(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(1)
    met = 0
    for case in range(60):
        if case % 2:
            ids = tokenizer.encode(" ".join(rng.sample(WRITTEN, 2)), add_special_tokens=False)
            ids = ids[rng.randrange(len(ids) // 2) :][:60]
        else:
            ids = [rng.randrange(len(tokenizer)) for _ in range(50)]
        stops = random_stops(rng, tokenizer, ids)
        ours = StopStrings(tokenizer, stops)
        theirs = StopStringCriteria(tokenizer=tokenizer, stop_strings=stops)
        for size in range(1, len(ids) + 1):
            expected = bool(theirs(torch.tensor([ids[:size]]), None))
            assert ours(ids[:size]) == expected, (stops, ids[:size])
            met += expected
    assert met > 60


def test_ids_that_no_token_has_break_a_stop_string() -> None:
    tokenizer = tokenizer_of("byte_level")
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    stop, oracle = StopStrings(tokenizer, ["ab"]), StopStringCriteria(tokenizer=tokenizer, stop_strings=["ab"])
    for ids in ([a, b], [a, len(tokenizer) + 5, b], [len(tokenizer) + 5], [b], []):
        if ids:
            assert stop(ids) == bool(oracle(torch.tensor([ids]), None))
    assert stop([a, b])
    assert not stop([])


def test_unusable_stop_strings_are_refused() -> None:
    tokenizer = tokenizer_of("unigram")
    with pytest.raises(RequestError, match="empty"):
        StopStrings(tokenizer, ["a", ""])
    with pytest.raises(RequestError, match="no token of this model"):
        StopStrings(tokenizer, ["\u3042"])
    with pytest.raises(ValueError, match="unable to identify"):
        StopStringCriteria(tokenizer=tokenizer, stop_strings=["\u3042"])
