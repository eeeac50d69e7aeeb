"""An end in time: ways to complete an answer that follows a grammar, and the tokens that leave one open.

A *way* is tokens that complete the answer from where it is. It is found by search, and proven by the parser itself;
it need not be the shortest there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from rayloom.engine.alphabet import alphabet_of
from rayloom.engine.brackets import Brackets
from rayloom.engine.masks import Mask, mask_of, tokens_of, with_tokens
from rayloom.engine.recent import Recent
from rayloom.engine.vocabulary import Vocabulary

_QUOTE = 0x22
_BETWEEN = (b"{", b"}", b"[", b"]", b",", b":", b'"')
"""Ends of an outline between values, or at one's end."""
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
_MOST_SHARED = 4
_NUM_REPEATED = 4
"""Longest plain tokens that are tried anew at each place of a text."""
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
        text: All that was written; with the tokens left the key under which results are remembered.
    """

    matcher: LLMatcher
    brackets: Brackets
    text: bytes


class _Followers:
    """What may follow at a place.

    Args:
        always: Tokens that need no more than the way.
        needs: Other tokens, and how many suffice after each.
    """

    def __init__(self, always: Mask, needs: dict[int, int]) -> None:
        self._always, self._needs = always, needs

    def mask(self, left: int) -> Mask:
        """Tokens after which ``left`` suffice."""
        mask = with_tokens(self._always, [token for token, need in self._needs.items() if need <= left])
        mask.flags.writeable = False
        return mask


class Closing:
    """Finds ways to the end.

    Args:
        vocabulary: What tokens write.
        mask_of_matcher: What a matcher allows next.
        greedy: Take the first way that closes brackets and quotes, as JSON wants it; else look for a short one.
        plain: Places with the same outline are the same place, but for the value that is being written.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        mask_of_matcher: Callable[[LLMatcher], Mask],
        *,
        greedy: bool,
        plain: bool = False,
    ) -> None:
        self._allowed, self._greedy, self._plain = mask_of_matcher, greedy, plain
        self._letters = alphabet_of(vocabulary)
        self._eos, self._size, self._tokens = vocabulary.eos_ids[0], vocabulary.size, vocabulary.tokens
        self._ends = mask_of(vocabulary.eos_ids, vocabulary.size)
        self._known: Recent[tuple[bytes, int], Mask] = Recent(512)
        self._texts: Recent[tuple[bytes, Way, int], _Followers | None] = Recent(256)
        self._betweens: Recent[tuple[bytes, Way, int], _Followers] = Recent(256)
        self._ways: Recent[tuple[bytes, int | None], list[tuple[Way, int]]] = Recent(1024)
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

    def renewed(self, place: Place, way: Way | None) -> Way | None:
        """A way from here: the last one or its end if that still leads there, else a new one."""
        for size in range(min(_MOST_SKIPPED, len(way) + 1) if way is not None else 0):
            if way is not None and self.holds(place.matcher, way[size:]):
                return way[size:]
        return self._found(place, None, _Effort())

    def safe(self, place: Place, mask: Mask, way: Way, left: int) -> Mask:
        """Those of the allowed tokens after which ``left`` tokens suffice.

        Not all of them: what is not proven quickly is left out. The next token of the way always is among them, and
        the end of sequence where it was.

        Args:
            place: Where the answer is.
            mask: What the grammar allows there.
            way: Completes the answer from there.
            left: Tokens left after the next one.
        """
        if len(way) > left:
            return self._next(place.matcher, way)
        most = len(way) + _MOST_DEARER
        left, brackets, bits = min(left, most), place.brackets, hash(mask.tobytes())
        if self._greedy and brackets.quoted:
            before = brackets.outline if self._plain else place.text[: brackets.opened]
            text = self._texts.get((before, way, bits), lambda: self._text(place, mask, way))
            if text is not None and self._all_hold(place.matcher, self._letters.samples[:_NUM_REPEATED], way):
                return text.mask(left)
        elif self._plain and brackets.outline.endswith(_BETWEEN):
            key = (brackets.outline, way, bits)
            return self._betweens.get(key, lambda: self._followers(place, mask, way, most)).mask(left)
        return self._known.get((place.text, left), lambda: self._followers(place, mask, way, left).mask(left))

    def _next(self, matcher: LLMatcher, way: Way) -> Mask:
        found = mask_of(way[:1], self._size)
        return found | self._ends if matcher.is_accepting() else found

    def _text(self, place: Place, mask: Mask, way: Way) -> _Followers | None:
        """What may follow in a text of any kind; None in other texts.

        It is one if all plain text is allowed, and the longest tokens of it change nothing. What is found then holds
        to its end, as long as the grammar allows the same tokens and the same way completes the answer.
        """
        plain = self._letters.plain
        if np.any(plain & ~mask) or not self._all_hold(place.matcher, self._letters.samples, way):
            return None
        found = self._next(place.matcher, way) | plain
        rest = tokens_of(mask & ~found)[:_MOST_CHECKED_IN_TEXT]
        return _Followers(found, self._needs(place, rest, way, len(way) + _MOST_DEARER))

    def _followers(self, place: Place, mask: Mask, way: Way, left: int) -> _Followers:
        found = self._next(place.matcher, way)
        rest = tokens_of(mask & ~found)[:_MOST_CHECKED]
        return _Followers(found, self._needs(place, rest, way, left))

    def _all_hold(self, matcher: LLMatcher, tokens: Sequence[int], way: Way) -> bool:
        return bool(tokens) and all(self.holds_after(matcher, token, way) for token in tokens)

    def holds_after(self, matcher: LLMatcher, token: int, way: Way) -> bool:
        """Whether the way completes the answer once the token is written."""
        return int(matcher.validate_tokens([token, *way, self._eos])) == len(way) + 2

    def _needs(self, place: Place, tokens: Sequence[int], way: Way, left: int) -> dict[int, int]:
        """Tokens after which ``left`` suffice, and how many surely do."""
        tails = [way[size:] for size in range(min(_TRIES, len(way) + 1)) if len(way) - size <= left]
        needs = {token: self._need(place.matcher, token, tails) for token in tokens}
        unproven = [token for token, need in needs.items() if need is None]
        effort = _Effort(_MOST_STEPS_OF_ALL)
        for token in unproven[:_MOST_SEARCHED]:
            found = self._found(place, token, effort)
            needs[token] = None if found is None else len(found)
        return {token: need for token, need in needs.items() if need is not None and need <= left}

    def _need(self, matcher: LLMatcher, token: int, tails: Sequence[Way]) -> int | None:
        """What the way, or what is left of it, still takes to the end after the token."""
        return next((len(tail) for tail in tails if self.holds_after(matcher, token, tail)), None)

    def _found(self, place: Place, token: int | None, effort: _Effort) -> Way | None:
        """What a search finds from here, or from behind a token.

        A search takes a hundred times as long as a proof: so what it found is remembered, with the steps it took. They
        are counted again, lest what a request may write depend on what others wrote before.
        """
        if effort.left <= 0:
            return None
        ways = self._ways.get((place.brackets.outline if self._plain else place.text, token), list)
        for way, steps in tuple(ways):
            if self.holds(place.matcher, way) if token is None else self.holds_after(place.matcher, token, way):
                effort.left -= steps
                return way
        before = effort.left
        found = self._searched(place, token, effort)
        if found is not None and len(ways) < _MOST_SHARED:
            ways.append((found, before - effort.left))
        return found

    def _searched(self, place: Place, token: int | None, effort: _Effort) -> Way | None:
        after, brackets = place.matcher.deep_copy(), place.brackets.copy()
        if token is not None:
            if not after.consume_token(token):
                return None
            brackets.write(self._tokens[token])
        return self.way(after, brackets, effort)

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
        letters = self._letters.of(mask)
        return letters or [token for token in tokens_of(mask)[:_BRANCHES] if token != self._eos]

    def _merged(self, matcher: LLMatcher, path: Way) -> Way:
        """The same text in fewer tokens, if the parser takes them."""
        merged = self._letters.merged(path)
        return merged if len(merged) < len(path) and self.holds(matcher, merged) else path
