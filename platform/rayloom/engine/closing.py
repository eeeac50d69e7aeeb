"""An end in time: ways to complete an answer that follows a grammar, and the tokens that leave one open.

A *way* is tokens that complete the answer from where it is. It is found by search, and proven by the parser itself;
it need not be the shortest there is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from rayloom.engine.brackets import Brackets
from rayloom.engine.masks import Mask, mask_of, tokens_of
from rayloom.engine.recent import Recent
from rayloom.engine.vocabulary import Vocabulary

_CLOSING = b'}]"0:,'
"""What brings JSON to an end, best first; inside a string it is the quote."""
_QUOTE = 0x22
_LAST = b"{["
_MOST_STEPS = 4096
_MOST_STEPS_OF_ALL = 1500
_MOST_LEVELS = 512
_WIDTH = 4
_BRANCHES = 48
_MOST_CHECKED = 384
_MOST_CHECKED_IN_TEXT = 48
_MOST_SEARCHED = 32
_MOST_DEARER = 32
"""A token is not looked at further if it makes the way by so much longer."""
_MOST_MERGED = 16
_NUM_SAMPLES = 24
_TRIES = 4
_MOST_SKIPPED = 12

Way = tuple[int, ...]


@dataclass
class _Effort:
    """Steps of the parser that a search may still take."""

    left: int = _MOST_STEPS


@dataclass(frozen=True)
class Place:
    """Where an answer is.

    Attributes:
        matcher: The parser.
        brackets: The same for the first look.
        text: All that was written.
    """

    matcher: LLMatcher
    brackets: Brackets
    text: bytes


class Closing:
    """Finds ways to the end.

    Args:
        vocabulary: What tokens write.
        mask_of_matcher: What a matcher allows next.
        greedy: Take the first way that closes brackets and quotes, as JSON wants it; else look for a short one.
    """

    def __init__(self, vocabulary: Vocabulary, mask_of_matcher: Callable[[LLMatcher], Mask], *, greedy: bool) -> None:
        self._allowed, self._greedy = mask_of_matcher, greedy
        self._letters = _alphabet(vocabulary)
        self._eos, self._size, self._tokens = vocabulary.eos_ids[0], vocabulary.size, vocabulary.tokens
        self._ends = mask_of(vocabulary.eos_ids, vocabulary.size)
        self._known: Recent[tuple[bytes, int], Mask] = Recent(512)
        self.gave_up = False
        """Whether some search was broken off: that it found nothing then proves nothing."""

    def way(self, matcher: LLMatcher, brackets: Brackets, effort: _Effort | None = None) -> Way | None:
        """A short way from here to a complete answer; None where none was found."""
        if matcher.is_error():
            return None
        found = self._first(matcher.deep_copy(), brackets.copy()) if self._greedy else None
        found = self._shortest(matcher, effort or _Effort()) if found is None else found
        return None if found is None else self._merged(matcher, found)

    def holds(self, matcher: LLMatcher, way: Way) -> bool:
        """Whether the way completes the answer from here."""
        if matcher.is_stopped():
            return not way
        return int(matcher.validate_tokens([*way, self._eos])) == len(way) + 1

    def renewed(self, matcher: LLMatcher, brackets: Brackets, way: Way | None) -> Way | None:
        """A way from here: the last one or its end if that still leads there, else a new one."""
        for size in range(min(_MOST_SKIPPED, len(way) + 1) if way is not None else 0):
            if way is not None and self.holds(matcher, way[size:]):
                return way[size:]
        return self.way(matcher, brackets)

    def safe(self, place: Place, mask: Mask, way: Way, left: int) -> Mask:
        """Those of the allowed tokens after which ``left`` tokens suffice.

        Not all of them: what is not proven quickly is left out. The next token of the way always is among them, and
        the end of sequence where it was.

        Args:
            place: Where the answer is; its text is the key under which the result is remembered.
            mask: What the grammar allows there.
            way: Completes the answer from there.
            left: Tokens left after the next one.
        """
        if len(way) > left:
            return self._next(place.matcher, way)
        left = min(left, len(way) + _MOST_DEARER)
        return self._known.get((place.text, left), lambda: self._safe(place, mask, way, left))

    def _next(self, matcher: LLMatcher, way: Way) -> Mask:
        found = mask_of(way[:1], self._size)
        return found | self._ends if matcher.is_accepting() else found

    def _safe(self, place: Place, mask: Mask, way: Way, left: int) -> Mask:
        matcher = place.matcher
        found = self._next(matcher, way)
        plain = self._letters.plain
        free = not np.any(plain & ~mask) and bool(self._letters.samples)
        if free and all(self.holds_after(matcher, token, way) for token in self._letters.samples):
            # All plain text is allowed, and the longest tokens of it change nothing: it is a text of any kind.
            found |= plain
        else:
            free = False
        rest = tokens_of(mask & ~found)[: _MOST_CHECKED_IN_TEXT if free else _MOST_CHECKED]
        unproven = [token for token in rest if not self._goes_on(matcher, token, way, left)]
        proven = list(set(rest).difference(unproven))
        effort = _Effort(_MOST_STEPS_OF_ALL)
        proven += [token for token in unproven[:_MOST_SEARCHED] if self._reaches(place, token, left, effort)]
        result: Mask = found | mask_of(proven, self._size)
        result.flags.writeable = False
        return result

    def holds_after(self, matcher: LLMatcher, token: int, way: Way) -> bool:
        """Whether the way completes the answer once the token is written."""
        return int(matcher.validate_tokens([token, *way, self._eos])) == len(way) + 2

    def _goes_on(self, matcher: LLMatcher, token: int, way: Way, left: int) -> bool:
        """Whether the way, or what is left of it, still leads to the end after the token."""
        tries = (way[size:] for size in range(min(_TRIES, len(way) + 1)))
        return any(len(rest) <= left and self.holds_after(matcher, token, rest) for rest in tries)

    def _reaches(self, place: Place, token: int, left: int, effort: _Effort) -> bool:
        if effort.left <= 0:
            return False
        after, brackets = place.matcher.deep_copy(), place.brackets.copy()
        if not after.consume_token(token):
            return False
        brackets.write(self._tokens[token])
        found = self.way(after, brackets, effort)
        return found is not None and len(found) <= left

    def _first(self, matcher: LLMatcher, brackets: Brackets) -> Way | None:
        """Always the best letter, until the answer is complete."""
        path: list[int] = []
        while not matcher.is_accepting():
            letters = self._choices(matcher)
            if not letters or len(path) > _MOST_LEVELS:
                return None
            quotes = (letter for letter in letters[:_BRANCHES] if self._tokens[letter][0] == _QUOTE)
            letter = next(quotes, letters[0]) if brackets.quoted else letters[0]
            matcher.consume_token(letter)
            brackets.write(self._tokens[letter])
            path.append(letter)
        return tuple(path)

    def _shortest(self, matcher: LLMatcher, effort: _Effort) -> Way | None:
        """Level by level; of places that allow the same tokens one is followed."""
        if matcher.is_accepting():
            return ()
        level: list[tuple[Way, LLMatcher]] = [((), matcher.deep_copy())]
        for _ in range(_MOST_LEVELS):
            nexts: dict[bytes, tuple[Way, LLMatcher]] = {}
            for path, place in level:
                for letter in self._choices(place)[:_BRANCHES]:
                    after = place.deep_copy()
                    if not after.consume_token(letter):
                        continue
                    if after.is_accepting():
                        return (*path, letter)
                    effort.left -= 1
                    nexts.setdefault(self._allowed(after).tobytes(), ((*path, letter), after))
            if not nexts:
                return None
            self.gave_up |= len(nexts) > _WIDTH
            level = list(nexts.values())[:_WIDTH]
            if effort.left <= 0:
                break
        self.gave_up = True
        return None

    def _choices(self, matcher: LLMatcher) -> list[int]:
        """Allowed letters, best first; whole tokens where no letter is allowed."""
        mask = self._allowed(matcher)
        order = self._letters.order
        letters: list[int] = order[(mask[order >> 5] >> (order & 31).astype(np.uint32)) & 1 == 1].tolist()
        return letters or [token for token in tokens_of(mask)[:_BRANCHES] if token != self._eos]

    def _merged(self, matcher: LLMatcher, path: Way) -> Way:
        """The same text in fewer tokens, if the parser takes them."""
        merged = self._letters.merged(path)
        return merged if len(merged) < len(path) and self.holds(matcher, merged) else path


class _Alphabet:
    """Tokens that write one character or byte, and tokens that write plain text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._size = vocabulary.size
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(vocabulary.tokens):
            if piece and token not in vocabulary.eos_ids:
                self._ids.setdefault(piece, token)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Letters, best first."""
        letters = [(piece, token) for piece, token in self._ids.items() if _is_letter(piece)]
        return np.array([token for _, token in sorted(letters, key=lambda item: _rank(item[0]))], dtype=np.int64)

    @cached_property
    def plain(self) -> Mask:
        """Letters, digits and single spaces, which mean nothing to JSON."""
        return mask_of(self._plain, self._size)

    @cached_property
    def samples(self) -> list[int]:
        """The longest plain tokens, and some more."""
        longest = sorted(self._plain, key=lambda token: -len(self._tokens[token]))
        return [*longest[: _NUM_SAMPLES // 2], *longest[:: max(len(longest) * 2 // _NUM_SAMPLES, 1)]]

    def merged(self, path: Sequence[int]) -> Way:
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
    def _plain(self) -> list[int]:
        return [token for piece, token in self._ids.items() if piece.replace(b" ", b"a", 1).isalnum()]


_alphabets: weakref.WeakKeyDictionary[Vocabulary, _Alphabet] = weakref.WeakKeyDictionary()


def _alphabet(vocabulary: Vocabulary) -> _Alphabet:
    if vocabulary not in _alphabets:
        _alphabets[vocabulary] = _Alphabet(vocabulary)
    return _alphabets[vocabulary]


def _is_letter(piece: bytes) -> bool:
    return len(piece) == 1 or (piece[0] >= 0xC0 and len(piece.decode(errors="replace")) == 1)


def _rank(piece: bytes) -> tuple[int, bytes]:
    if piece in _CLOSING:
        return _CLOSING.index(piece), piece
    if piece in _LAST:
        return 1000, piece
    return 100 + len(piece), piece
