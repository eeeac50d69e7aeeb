"""Required words: phrases that must appear in an answer, whatever the model would rather say."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from rayloom.errors import RequestError

Mask = npt.NDArray[np.uint32]


class RequiredWords:
    """The constraint that all of some phrases appear. A phrase may be written in several ways; any one satisfies it.

    Two rules keep the promise. End of sequence is masked out while a phrase is missing. And a token is allowed only if
    the tokens that are left after it still suffice to write all missing phrases, one after another; the phrase that is
    furthest on may be continued. While there is room to spare the second rule forbids nothing. Occurrences that overlap
    or that the model writes of its own accord count (automaton of Aho and Corasick, 1975).

    The promise holds as long as nothing else forbids the allowed tokens or ends the answer earlier (a stop string, a
    time limit; a forced end of sequence: count that one off `max_new_tokens`). Lexically constrained beams read
    `num_met`, `total` and `wanted` (`beam_pools.py`).

    Args:
        phrases: For each phrase its alternatives, each a sequence of token ids.
        eos_ids: Ends of sequence.
        max_new_tokens: Tokens that the answer may still take.
        vocab_size: Of the model.
        prefix: Tokens that the answer already begins with. They count as written and take nothing off the limit.

    Raises:
        RequestError: A phrase without alternatives, an empty or impossible alternative, or more tokens required than
            `max_new_tokens`.
    """

    def __init__(
        self,
        phrases: Seq[Seq[Seq[int]]],
        eos_ids: Collection[int],
        max_new_tokens: int,
        vocab_size: int,
        prefix: Seq[int] = (),
    ) -> None:
        _check(phrases, eos_ids, vocab_size)
        self._phrases = _Phrases(phrases, eos_ids, vocab_size)
        self._node, self._met, self._tokens_left = 0, 0, max_new_tokens
        for token in prefix:
            self._node, self._met = self._phrases.after(self._node, self._met, token)
        if (need := self._phrases.need(self._node, self._met)) > max_new_tokens:
            raise RequestError(f"required_words take {need} tokens, but max_new_tokens is {max_new_tokens}")

    @property
    def total(self) -> int:
        """Tokens of all phrases, each in its shortest form."""
        return self._phrases.total

    @property
    def num_met(self) -> int:
        """How many of them are written: `total` once all phrases are met; a phrase broken off counts nothing."""
        return self.total - self._phrases.need(self._node, self._met)

    @property
    def is_met(self) -> bool:
        """Whether all phrases have appeared."""
        return self._met == self._phrases.all_met

    def met_after(self, token: int) -> int:
        """`num_met`, were this token taken."""
        return self.total - self._phrases.need(*self._phrases.after(self._node, self._met, token))

    def wanted(self) -> frozenset[int]:
        """Tokens that begin a missing phrase or go on with one that is begun."""
        return self._phrases.wanted(self._node, self._met)

    def mask(self) -> Mask | None:
        """See `Constraint`."""
        phrases = self._phrases
        if self.is_met:
            return None
        room = self._tokens_left - 1
        if phrases.need(0, self._met) <= room:
            return phrases.all_but_eos
        # Others than the phrases' own tokens break off what is begun. Not only `wanted` ones may fit: after "a a" of
        # "a a b" one more "a" loses nothing.
        fitting = [token for token in phrases.tokens if self.total - self.met_after(token) <= room]
        return _mask(fitting or self.wanted(), phrases.vocab_size)

    def advance(self, token: int) -> None:
        """See `Constraint`."""
        self._node, self._met = self._phrases.after(self._node, self._met, token)
        self._tokens_left -= 1

    @property
    def is_over(self) -> bool:
        """See `Constraint`. Other words may always follow."""
        return False

    def fork(self) -> RequiredWords:
        """See `Constraint`."""
        other = object.__new__(RequiredWords)
        other._phrases = self._phrases
        other._node, other._met, other._tokens_left = self._node, self._met, self._tokens_left
        return other


class _Phrases:
    """The automaton over all alternatives. Forks share it; what it remembers are results of pure functions.

    A node is the longest end of the text that begins some alternative. `met` has bit p set when phrase p has appeared.
    """

    def __init__(self, phrases: Seq[Seq[Seq[int]]], eos_ids: Collection[int], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.all_but_eos = _full_mask(vocab_size) & ~_mask(eos_ids, vocab_size)
        self.all_but_eos.flags.writeable = False
        self.all_met = (1 << len(phrases)) - 1
        self._sizes = [min(len(way) for way in ways) for ways in phrases]
        self.total = sum(self._sizes)
        self.tokens = sorted({token for ways in phrases for way in ways for token in way})
        self._ways = [(number, tuple(way)) for number, ways in enumerate(phrases) for way in ways]
        self._children: list[dict[int, int]] = [{}]
        self._fail = [0]
        self._ends = [0]
        self._written: list[list[int]] = [[0] * len(self._ways)]
        self._grow()
        self._link()
        self._steps: dict[tuple[int, int], int] = {}
        self._needs: dict[tuple[int, int], int] = {}
        self._wanted: dict[tuple[int, int], frozenset[int]] = {}

    def after(self, node: int, met: int, token: int) -> tuple[int, int]:
        """Node and met phrases once the token is taken."""
        key = (node, token)
        target = self._steps.get(key)
        if target is None:
            target = self._step(node, token)
            if target:  # tokens of no phrase all lead to the root: not worth remembering
                self._steps[key] = target
        return target, met | self._ends[target]

    def need(self, node: int, met: int) -> int:
        """Tokens that surely suffice to write what is missing: finish the phrase that is furthest on, then the rest."""
        key = (node, met)
        if key not in self._needs:
            missing = sum(size for number, size in enumerate(self._sizes) if not met >> number & 1)
            self._needs[key] = missing - self._furthest(node, met)
        return self._needs[key]

    def wanted(self, node: int, met: int) -> frozenset[int]:
        """Next tokens of missing phrases."""
        key = (node, met)
        if key not in self._wanted:
            ways = zip(self._ways, self._written[node], strict=True)
            self._wanted[key] = frozenset(way[size] for (number, way), size in ways if not met >> number & 1)
        return self._wanted[key]

    def _furthest(self, node: int, met: int) -> int:
        """Tokens saved by going on with what is begun, rather than writing the same phrase anew."""
        ways = zip(self._ways, self._written[node], strict=True)
        return max(
            (self._sizes[number] - (len(way) - size) for (number, way), size in ways if not met >> number & 1),
            default=0,
        )

    def _step(self, node: int, token: int) -> int:
        while node and token not in self._children[node]:
            node = self._fail[node]
        return self._children[node].get(token, 0)

    def _grow(self) -> None:
        for place, (number, way) in enumerate(self._ways):
            node = 0
            for depth, token in enumerate(way, start=1):
                if token not in self._children[node]:
                    self._children[node][token] = len(self._children)
                    self._children.append({})
                    self._fail.append(0)
                    self._ends.append(0)
                    self._written.append([0] * len(self._ways))
                node = self._children[node][token]
                self._written[node][place] = depth
            self._ends[node] |= 1 << number

    def _link(self) -> None:
        """Breadth first: a node's shorter ends are known before the node's own."""
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            fail = self._fail[node]
            self._ends[node] |= self._ends[fail]
            self._written[node] = [
                own or shorter for own, shorter in zip(self._written[node], self._written[fail], strict=True)
            ]
            for token, child in self._children[node].items():
                self._fail[child] = self._step(fail, token)
                queue.append(child)


def _check(phrases: Seq[Seq[Seq[int]]], eos_ids: Collection[int], vocab_size: int) -> None:
    for ways in phrases:
        if not ways or not all(ways):
            raise RequestError("required_words must not be empty: a phrase has no tokens")
        for token in (token for way in ways for token in way):
            if token in eos_ids or not 0 <= token < vocab_size:
                raise RequestError(f"required_words need token {token}, which the model cannot write in an answer")


def _mask(tokens: Collection[int], vocab_size: int) -> Mask:
    mask = np.zeros((vocab_size + 31) // 32, dtype=np.uint32)
    ids = np.fromiter((token for token in tokens if token < vocab_size), dtype=np.int64)
    np.bitwise_or.at(mask, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return mask


def _full_mask(vocab_size: int) -> Mask:
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, dtype=np.uint32)
    if vocab_size % 32:
        mask[-1] = (1 << vocab_size % 32) - 1
    return mask
