from __future__ import annotations

import random

import pytest

from rayloom.generation.words import read_vocabulary, silent_ids, spellings
from tests.unit.generation.tokenizers import KINDS, WRITTEN, tokenizer_of


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_add_up_to_the_decoded_text(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(2)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 7, [tokenizer.eos_token_id])
    assert len(vocabulary.tokens) == vocabulary.size == len(tokenizer) + 7
    assert vocabulary.drops_space == (kind != "byte_level")
    silent = silent_ids(tokenizer)
    for _ in range(300):
        if rng.random() < 0.5:
            ids = tokenizer.encode(rng.choice(WRITTEN)[rng.randrange(9) :], add_special_tokens=False)
        else:
            ids = [rng.randrange(len(tokenizer)) for _ in range(8)]
        written = b"".join(vocabulary.tokens[token] for token in ids)
        try:
            text = written.decode()
        except UnicodeDecodeError:
            continue
        audible = [token for token in ids if token not in silent]
        if vocabulary.drops_space and audible and vocabulary.tokens[audible[0]].startswith(b" "):
            text = text.removeprefix(" ")
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_write_the_word(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for word in ("cat", "the mill", "Paris", "b"):
        found = spellings(tokenizer, word)
        assert found
        assert len({tuple(ids) for ids in found}) == len(found)
        for ids in found:
            assert tokenizer.decode(ids).strip() == word
    if kind == "byte_level":
        assert len(spellings(tokenizer, "cat")) == 2


def test_what_a_vocabulary_cannot_write_has_no_spelling() -> None:
    assert spellings(tokenizer_of("unigram"), "\u3042") == []


def test_relatives_of_a_vocabulary_are_the_same_objects() -> None:
    tokenizer = tokenizer_of("byte_level")
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), [1])
    other = vocabulary.ending_with([1, 5, 5, 10**6])
    assert other.eos_ids == (1, 5)
    assert other is vocabulary.ending_with((1, 5))
    assert other.ending_with([1]) is vocabulary
