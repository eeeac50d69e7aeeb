"""Text while it is written: the pieces of a stream are the whole text, whatever bytes its tokens are cut into."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from rayloom.generation.streaming import GrowingText, Pieces
from rayloom.generation.words import decode
from tests.unit.generation.tokenizers import KINDS, tokenizer_of

WRITTEN = "The mill 日本 grinds 😀😁 é slowly"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_tokens_are_the_whole_text(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(3)
    for number in range(400):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 14))]
        if number % 2:
            ids = tokenizer.encode(WRITTEN, add_special_tokens=False)
            ids = ids[rng.randrange(4) : rng.randrange(4, len(ids))]
        pieces = Pieces(tokenizer, ids[:1], [])
        told = [pieces.add(token) for token in ids[1:]]
        told.append(pieces.finish(decode(tokenizer, ids)))
        assert "".join(told) == decode(tokenizer, ids), ids


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_text_that_ends_inside_a_character_keeps_all_others(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("日本日本", add_special_tokens=False)
    assert decode(tokenizer, ids) == "日本日本"
    assert decode(tokenizer, ids[:-1]).rstrip("\ufffd") == "日本日"


def test_bytes_that_are_no_text_cost_nothing_but_themselves() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = tokenizer.encode("the 日 cat", add_special_tokens=False)
    stray = tokenizer.convert_tokens_to_ids("<0xFF>")
    place = next(at for at, token in enumerate(ids) if tokenizer.convert_ids_to_tokens(token) == "<0xA5>") + 1
    assert decode(tokenizer, [*ids[:place], stray, *ids[place:]]) == "the 日\ufffd cat"
    assert decode(tokenizer, [tokenizer.bos_token_id, *ids, stray]) == "the 日 cat\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_a_growing_text_is_what_decoding_all_of_it_gives(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(4)
    for number in range(60):
        ids = [rng.randrange(len(tokenizer) if number % 3 else 5) for _ in range(rng.randrange(1, 50))]
        if number % 2:
            ids += tokenizer.encode(WRITTEN, add_special_tokens=False)
        growing = GrowingText(tokenizer, window=rng.randrange(1, 6))
        for size in range(1, len(ids) + 1):
            assert growing.of(ids[:size]) == decode(tokenizer, ids[:size]), ids[:size]


def test_a_long_answer_is_not_decoded_anew_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, num_decoded = tokenizer_of("byte_level"), 0

    def counting(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode(tokenizer, token_ids)

    monkeypatch.setattr("rayloom.generation.streaming.decode", counting)
    ids = tokenizer.encode("The mill grinds slowly. " * 100, add_special_tokens=False)
    pieces = Pieces(tokenizer, [], [])
    assert "".join(map(pieces.add, ids)) == decode(tokenizer, ids)
    assert num_decoded < 70 * len(ids)
    assert len(ids) > 400
