"""Tokens that ways to an answer's end are made of: letters, and plain text (`closing.py`)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rayloom.engine.masks import Mask, mask_of
from rayloom.engine.vocabulary import Vocabulary

_CLOSING = b'}]"0:,'
"""What brings JSON to an end, best first; inside a string it is the quote."""
_LAST = b"{["
_MOST_MERGED = 16
_NUM_SAMPLES = 24


class Alphabet:
    """Tokens that write one character or byte, and tokens that write plain text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._size = vocabulary.size
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(vocabulary.tokens):
            if piece and token not in vocabulary.eos_ids:
                self._ids.setdefault(piece, token)

    def of(self, mask: Mask) -> list[int]:
        """Letters of a mask, best first."""
        order, words, bits = self._letters
        found: list[int] = order[(mask[words] & bits) != 0].tolist()
        return found

    @cached_property
    def plain(self) -> Mask:
        """Letters, digits and single spaces, which mean nothing to JSON."""
        return mask_of(self._plain, self._size)

    @cached_property
    def samples(self) -> list[int]:
        """The longest plain tokens, and some more."""
        longest = sorted(self._plain, key=lambda token: -len(self._tokens[token]))
        return [*longest[: _NUM_SAMPLES // 2], *longest[:: max(len(longest) * 2 // _NUM_SAMPLES, 1)]]

    def merged(self, path: Sequence[int]) -> tuple[int, ...]:
        """The path's text in the longest tokens from the left."""
        text, found, at = b"".join(self._tokens[token] for token in path), [], 0
        while at < len(text):
            sizes = range(min(_MOST_MERGED, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._ids), 0)
            if not size:
                return tuple(path)
            found.append(self._ids[text[at : at + size]])
            at += size
        return tuple(found)

    @cached_property
    def _letters(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Mask]:
        """All letters, best first; the words of a mask that they are in, and their bits there."""
        letters = sorted((_rank(piece), token) for piece, token in self._ids.items() if _is_letter(piece))
        order = np.array([token for _, token in letters], dtype=np.int64)
        return order, order >> 5, np.uint32(1) << (order & 31).astype(np.uint32)

    @cached_property
    def _plain(self) -> list[int]:
        return [token for piece, token in self._ids.items() if piece.replace(b" ", b"a", 1).isalnum()]


_alphabets: weakref.WeakKeyDictionary[Vocabulary, Alphabet] = weakref.WeakKeyDictionary()


def alphabet_of(vocabulary: Vocabulary) -> Alphabet:
    """The vocabulary's, made once."""
    if vocabulary not in _alphabets:
        _alphabets[vocabulary] = Alphabet(vocabulary)
    return _alphabets[vocabulary]


def _is_letter(piece: bytes) -> bool:
    return len(piece) == 1 or (piece[0] >= 0xC0 and len(piece.decode(errors="replace")) == 1)


def _rank(piece: bytes) -> tuple[int, bytes]:
    if piece in _CLOSING:
        return _CLOSING.index(piece), piece
    if piece in _LAST:
        return 1000, piece
    return 100 + len(piece), piece
