"""Forbidden words, held on the level of text: no other spelling in tokens gets a word through.

Everything is bytes. In UTF-8 a word's first byte starts a character whatever stands before it, so a word occurs in
the bytes where it occurs in the text.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

from rayloom.engine.masks import Mask, mask_from_flags
from rayloom.engine.recent import Recent
from rayloom.engine.vocabulary import Vocabulary

_Begun = tuple[int, int]
"""A word by its number, and how many of its bytes are written."""
_START = b" "
_LONGEST_CHARACTER = 4


class ForbiddenWords:
    """The constraint that no forbidden word or phrase is written.

    A word is met where it starts at a word's start: ``cat`` also forbids ``cats``, but not ``concat``. Case counts.

    Args:
        words: Words or phrases, none of them empty or with spaces around it.
        vocabulary: What tokens write.
    """

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        kept = _compiled.setdefault(vocabulary, Recent(16))
        self._words = kept.get(tuple(words), lambda: _Words(words, vocabulary))
        self._begun: frozenset[_Begun] = frozenset()
        self._before = _START

    def mask(self) -> Mask | None:
        """See `Constraint`."""
        return self._words.mask(self._begun, self._before)

    def advance(self, token: int) -> None:
        """See `Constraint`. A forced token may write a forbidden word: it then is not looked at again."""
        self._begun, self._before = self._words.after(self._begun, self._before, token)

    @property
    def is_over(self) -> bool:
        """See `Constraint`. Other words may always follow."""
        return False

    def fork(self) -> ForbiddenWords:
        """See `Constraint`."""
        other = object.__new__(ForbiddenWords)
        other._words, other._begun, other._before = self._words, self._begun, self._before
        return other


class _Words:
    """The words over one vocabulary. Forks share it; what it remembers are results of pure functions."""

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        self._words = tuple(word.encode() for word in dict.fromkeys(words))
        # Only a word that begins with a letter, digit or _ can go on from one.
        self._free = tuple(not re.match(r"\w", word) for word in dict.fromkeys(words))
        self._tokens, self._size = vocabulary.tokens, vocabulary.size
        self._sorted = sorted((piece, token) for token, piece in enumerate(vocabulary.tokens) if piece)
        self._inside = [
            (token, number, place)
            for token, piece in enumerate(vocabulary.tokens)
            for number, word in enumerate(self._words)
            for place in _places(piece, word)
        ]
        self._masks: Recent[tuple[frozenset[_Begun], bytes], Mask | None] = Recent(256)

    def mask(self, begun: frozenset[_Begun], before: bytes) -> Mask | None:
        """All tokens but those that complete a word; None where there are none."""
        return self._masks.get((begun, before), lambda: self._mask(begun, before))

    def after(self, begun: frozenset[_Begun], before: bytes, token: int) -> tuple[frozenset[_Begun], bytes]:
        """Words begun, and what their starts must be told of the text before, once the token is written."""
        piece = self._tokens[token] if 0 <= token < len(self._tokens) else b""
        if not piece:
            return begun, before
        found = {
            (number, size + len(piece))
            for number, size in begun
            if len(piece) < len(self._words[number]) - size and self._words[number].startswith(piece, size)
        }
        for number, word in enumerate(self._words):
            for place in range(max(len(piece) - len(word) + 1, 0), len(piece)):
                if word.startswith(piece[place:]) and self._may_start(number, before, piece, place):
                    found.add((number, len(piece) - place))
        return frozenset(found), _before(before + piece)

    def _mask(self, begun: frozenset[_Begun], before: bytes) -> Mask | None:
        banned = {
            token
            for token, number, place in self._inside
            if self._may_start(number, before, self._tokens[token], place)
        }
        for number, size in begun:
            banned.update(self._starting_with(self._words[number][size:]))
        if not banned:
            return None
        allowed = np.ones(self._size, dtype=np.bool_)
        allowed[list(banned)] = False
        mask = mask_from_flags(allowed)
        mask.flags.writeable = False
        return mask

    def _may_start(self, number: int, before: bytes, piece: bytes, place: int) -> bool:
        if self._free[number]:
            return True
        text = (before + piece[:place])[-_LONGEST_CHARACTER:].decode(errors="replace")
        return not re.match(r"\w", text[-1])

    def _starting_with(self, head: bytes) -> Iterator[int]:
        at = bisect_left(self._sorted, (head, -1))
        while at < len(self._sorted) and self._sorted[at][0].startswith(head):
            yield self._sorted[at][1]
            at += 1


_compiled: weakref.WeakKeyDictionary[Vocabulary, Recent[tuple[str, ...], _Words]] = weakref.WeakKeyDictionary()


def _places(piece: bytes, word: bytes) -> Iterator[int]:
    place = piece.find(word)
    while place >= 0:
        yield place
        place = piece.find(word, place + 1)


def _before(written: bytes) -> bytes:
    """The end of a text, as short as will do to tell what precedes the next character."""
    tail = written[-_LONGEST_CHARACTER:]
    for size in range(1, min(len(tail), _LONGEST_CHARACTER - 1) + 1):
        if tail[-size] >= 0xC0:  # a character's first byte: does it want more than has come?
            wanted = 2 + (tail[-size] >= 0xE0) + (tail[-size] >= 0xF0)
            if wanted > size:
                return tail
            break
        if tail[-size] < 0x80:
            break
    return b"a" if re.match(r"\w", tail.decode(errors="replace")[-1]) else _START
