"""Required words always appear, and the constraint counts what a naive search through the text counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from rayloom.engine.required import RequiredWords
from rayloom.errors import RequestError
from tests.unit.engine.beam_references import naive_need, naive_room, occurs

EOS = 1


def allowed_by(words: RequiredWords, vocab_size: int) -> set[int]:
    mask = words.mask()
    if mask is None:
        return set(range(vocab_size))
    assert mask.dtype == np.uint32
    assert mask.shape == ((vocab_size + 31) // 32,)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return set(np.flatnonzero(bits).tolist())


def random_phrases(rng: random.Random, vocab_size: int) -> list[list[list[int]]]:
    tokens = range(2, min(vocab_size, rng.choice([4, 6, 60])))
    return [
        [rng.choices(tokens, k=rng.randint(1, 4)) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(0, 4))
    ]


def choose(rng: random.Random, words: RequiredWords, allowed: set[int], manner: str) -> int:
    """At random; or against the words as long as it can; or half a phrase at a time."""
    against = allowed - words.wanted()
    if manner == "against" and against:
        return rng.choice(sorted(against))
    if manner == "teasing" and rng.random() < 0.7 and (near := allowed & words.wanted()):
        return rng.choice(sorted(near))
    return rng.choice(sorted(allowed))


@pytest.mark.parametrize("seed", range(300))
def test_all_phrases_appear_and_counts_are_those_of_a_naive_search(seed: int) -> None:
    rng = random.Random(seed)
    vocab_size = rng.choice([8, 32, 33, 100])
    phrases = random_phrases(rng, vocab_size)
    room = naive_need((), phrases) + rng.choice([0, 0, 1, 3, 10])
    words = RequiredWords(phrases, [EOS], room, vocab_size)
    manner = rng.choice(["random", "against", "teasing"])
    text: tuple[int, ...] = ()
    while len(text) < room:
        allowed = allowed_by(words, vocab_size)
        assert allowed == naive_room(text, phrases, room - len(text), vocab_size, EOS)
        assert words.num_met == words.total - naive_need(text, phrases)
        token = choose(rng, words, allowed, manner)
        if token == EOS:
            break
        after, twin = words.met_after(token), words.fork()
        words.advance(token)
        assert words.num_met == after
        twin.advance(token)
        assert allowed_by(twin, vocab_size) == allowed_by(words, vocab_size) or len(text) + 1 == room
        text = (*text, token)
    assert all(any(occurs(way, text) for way in ways) for ways in phrases)
    assert words.is_met
    assert words.num_met == words.total
    assert words.mask() is None
    assert not words.wanted()


def test_wanted_tokens_are_those_that_phrases_begin_or_go_on_with() -> None:
    words = RequiredWords([[[2, 3, 4], [5]], [[3, 6]]], [EOS], 10, 20)
    assert words.wanted() == {2, 5, 3}
    words.advance(2)
    words.advance(3)
    assert words.wanted() == {4, 5, 6}
    assert words.num_met == 1  # of [3, 6]; the shortest form of the other phrase is no nearer than before
    words.advance(6)
    assert words.wanted() == {2, 5}
    words.advance(5)
    assert words.is_met


def test_forks_go_their_own_way() -> None:
    words = RequiredWords([[[2, 3]]], [EOS], 3, 8)
    words.advance(2)
    other = words.fork()
    other.advance(4)
    assert (words.num_met, other.num_met) == (1, 0)
    words.advance(3)
    assert words.is_met
    assert not other.is_met


def test_a_prefix_counts_as_written_and_costs_nothing() -> None:
    assert RequiredWords([[[2, 3]], [[4]]], [EOS], 1, 8, prefix=[2, 3]).num_met == 2
    half = RequiredWords([[[2, 3]]], [EOS], 1, 8, prefix=[7, 2])
    assert allowed_by(half, 8) == {3}


def test_no_phrases_forbid_nothing() -> None:
    words = RequiredWords([], [EOS], 5, 8)
    assert words.is_met
    assert words.mask() is None


@pytest.mark.parametrize(
    ("phrases", "match"),
    [
        ([[]], "empty"),
        ([[[]]], "empty"),
        ([[[2], []]], "empty"),
        ([[[2, EOS]]], f"token {EOS}"),
        ([[[8]]], "token 8"),
        ([[[-1]]], "token -1"),
        ([[[2, 3]], [[4, 4]]], "take 4 tokens, but max_new_tokens is 3"),
    ],
)
def test_what_cannot_be_written_is_refused(phrases: Sequence[Sequence[Sequence[int]]], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        RequiredWords(phrases, [EOS], 3, 8)
