"""Forbidden words against the processor that ``transformers.generate`` was given before: equal, token by token."""

from __future__ import annotations

import random

import pytest
import torch

from rayloom.engine.constraints import MaskPool
from rayloom.engine.forbidden import ForbiddenWords
from rayloom.engine.masks import flags_of, intersect, mask_from_flags, mask_of, tokens_of
from rayloom.generation import forbidden
from rayloom.generation.words import read_vocabulary, silent_ids
from tests.unit.generation.tokenizers import WRITTEN, tokenizer_of

WORDS = ["cat", "the", "mill", "a", "naïve", "日", "é", "old mill", ",", "ca", "\U0001f600", "at on", "s", "t.", "ß"]


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_the_same_tokens_are_forbidden_as_by_the_processor(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(3)
    size = len(tokenizer) + 5
    vocabulary = read_vocabulary(tokenizer, size)
    silent = silent_ids(tokenizer)
    num_forbidden = 0
    for case in range(25):
        words = rng.sample(WORDS, rng.randint(1, 4))
        constraint, oracle = ForbiddenWords(words, vocabulary), forbidden.ForbiddenWords(words, tokenizer, 0)
        text = tokenizer.encode(rng.choice(WRITTEN)[rng.randrange(20) :], add_special_tokens=False)
        ids: list[int] = []
        for step in range(25):
            scores = oracle(torch.tensor([ids], dtype=torch.long), torch.zeros(1, size))
            expected = torch.isinf(scores[0]).nonzero()[:, 0].tolist()
            mask = constraint.mask()
            found = [] if mask is None else [token for token, ok in enumerate(flags_of(mask, size)) if not ok]
            assert found == expected, (words, ids)
            num_forbidden += len(found)
            token = text[step % len(text)] if case % 2 else rng.randrange(len(tokenizer))
            if token in found or token in silent:
                token = next(other for other in range(40, size) if other not in found)
            ids.append(token)
            constraint.advance(token)
    assert num_forbidden > 1000


def test_no_text_of_a_free_walk_holds_a_forbidden_word() -> None:
    tokenizer, rng = tokenizer_of("byte_fallback"), random.Random(4)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    words = ["t", "cat", "\u00e9", "e m"]
    for _ in range(20):
        constraint, ids = ForbiddenWords(words, vocabulary), []
        for _ in range(60):
            mask = constraint.mask()
            ids.append(rng.choice(tokens_of(mask)) if mask is not None else rng.randrange(vocabulary.size))
            fork = constraint.fork()
            fork.advance(rng.randrange(vocabulary.size))  # must not be felt by the other
            constraint.advance(ids[-1])
        text = b"".join(vocabulary.tokens[token] for token in ids).decode(errors="replace")
        assert not any(pattern.search(text) for pattern in map(forbidden.re.compile, map(forbidden._pattern, words)))


def test_a_forced_prefix_may_hold_a_forbidden_word_and_can_start_one() -> None:
    tokenizer = tokenizer_of("byte_level")
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    constraint = ForbiddenWords(["cat"], vocabulary)
    letters = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "cats"}
    for letter in "catca":
        constraint.advance(letters[letter])
    allowed = flags_of(constraint.mask(), vocabulary.size)
    assert allowed[letters["t"]]  # it would go on from a letter: no word starts there
    fresh = ForbiddenWords(["cat"], vocabulary)
    for letter in "ca":
        fresh.advance(letters[letter])
    assert not flags_of(fresh.mask(), vocabulary.size)[letters["t"]]


def test_masks_hold_what_they_are_given() -> None:
    rng = random.Random(5)
    for size in (1, 31, 32, 33, 64, 100, 400):
        kept = sorted(rng.sample(range(size), rng.randint(0, size)))
        mask = mask_of([*kept, size + 3], size)
        assert tokens_of(mask) == kept
        assert (mask == mask_from_flags(flags_of(mask, size))).all()
        other = sorted(rng.sample(range(size), rng.randint(0, size)))
        assert tokens_of(intersect([mask, None, mask_of(other, size)])) == sorted({*kept} & {*other})
        assert intersect([None, mask]) is mask
    assert intersect([]) is None
    assert intersect([None]) is None


def test_a_pool_gives_the_same_masks_prepared_or_not() -> None:
    tokenizer = tokenizer_of("byte_level")
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    pool = MaskPool(2)
    sequences = [(ForbiddenWords([word], vocabulary), ForbiddenWords(["the"], vocabulary)) for word in WORDS] + [()]
    alone = pool.collect(sequences)
    for _ in range(3):
        pool.prepare(sequences)
        pool.forget(sequences[:2])
        for one, other in zip(alone, pool.collect(sequences), strict=True):
            assert (one is None and other is None) or (one == other).all()
    assert alone[-1] is None
    pool.close()
