"""Answers that follow a JSON schema, match an expression, or are one of a choice.

What may come next is llguidance's to say (token masks from a byte-level parser, https://github.com/guidance-ai/llguidance).
This module turns a caller's wish into its grammar, and adds what it does not have: an end in time (`closing.py`).
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from rayloom.engine.brackets import Brackets
from rayloom.engine.closing import Closing, Place
from rayloom.engine.masks import Mask, mask_of, num_words
from rayloom.engine.recent import Recent
from rayloom.engine.vocabulary import Vocabulary
from rayloom.engine.wording import Kind, Wording, word
from rayloom.errors import RequestError

_UNBOUNDED = 1 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What surrounds an answer that follows a grammar.

    Attributes:
        prefix_ids: Tokens that the answer is forced to start with; they must agree with the grammar.
        max_new_tokens: Tokens that may follow them; the answer is brought to an end in time. None for no bound.
        start_text: May stand before the answer, of which it is no part.
        first_token: The model forces this special token first (``forced_bos_token_id``).
        forbidden: Words that an expression's match or a choice must not hold, as `ForbiddenWords` means it.
            A JSON schema does not take them: use that constraint beside it.
    """

    prefix_ids: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    start_text: str = ""
    first_token: int | None = None
    forbidden: tuple[str, ...] = ()


_OPEN = Frame()


def compile_grammar(kind: Kind, spec: Any, vocabulary: Vocabulary, frame: Frame = _OPEN) -> GrammarConstraint:
    """The constraint that an answer follows a grammar.

    Compiled grammars are remembered; constraints of equal ones share everything that does not change.

    Args:
        kind: ``json_schema`` (spec: the schema), ``json`` (any object; spec is ignored), ``regex`` (an expression that
            the whole answer matches, in Rust's syntax, which is Python's without look-around and backreferences;
            a digit is 0-9) or ``choice`` (a list of texts).
        spec: What is followed.
        vocabulary: What tokens write; must have an end of sequence.
        frame: What surrounds the answer.

    Raises:
        RequestError: A grammar that nothing follows or that is not understood, a forced prefix that does not agree
            with it, or fewer tokens than an answer takes.
    """
    if not vocabulary.eos_ids:
        raise RequestError(f"{kind} needs an end-of-sequence token; this model has none")
    lead = " " if vocabulary.drops_space else frame.start_text
    wording = word(kind, spec, lead, frame.forbidden, vocabulary)
    kept = _compiled.setdefault(vocabulary, Recent(64))
    compiled = kept.get(wording, lambda: _Compiled(kind, wording, vocabulary))
    constraint = GrammarConstraint(compiled, frame)
    constraint.start()
    return constraint


class GrammarConstraint:
    """See `compile_grammar`.

    With a bound on tokens the answer is complete in time, provided that no single token makes the way to the end longer
    than the grammar's margin says (see `margins.py`) and that no other constraint forbids that way. Where only the end
    of sequence is left, it alone is allowed.

    Args:
        compiled: The grammar.
        frame: What surrounds the answer.
    """

    def __init__(self, compiled: _Compiled, frame: Frame) -> None:
        self._compiled, self._frame = compiled, frame
        self._matcher = compiled.matcher.deep_copy()
        self._left = frame.max_new_tokens
        self._first = frame.first_token
        self._way: tuple[int, ...] | None = None
        self._brackets, self._text = compiled.brackets(), b""
        self._ended = False

    def start(self) -> None:
        """Take the forced prefix, and see that the rest can be written.

        Raises:
            RequestError: It cannot.
        """
        kind, prefix = self._compiled.kind, self._frame.prefix_ids
        if not self._matcher.is_error() and self._matcher.try_consume_tokens(list(prefix)) < len(prefix):
            raise RequestError(f"{kind}: the answer's forced prefix does not agree with it")
        for token in prefix:
            self._write(token)
        compiled = self._compiled
        way = compiled.ways.get(self._text, lambda: compiled.closing.way(self._matcher, self._brackets))
        if way is None and not self._compiled.closing.gave_up:
            raise RequestError(f"{kind}: this model's vocabulary cannot write any such answer")
        if way is not None and self._left is not None and len(way) > self._left:
            raise RequestError(
                f"{kind}: the shortest answer found takes {len(way)} tokens, but only {self._left} may be written; "
                "raise max_new_tokens"
            )
        self._way = way

    def mask(self) -> Mask | None:
        """See `Constraint`."""
        compiled = self._compiled
        if self._first is not None:
            return mask_of([self._first], compiled.size)
        if self._ended or self._matcher.is_stopped():
            return compiled.ends
        mask = compiled.mask(self._matcher)
        if self._matcher.is_accepting():
            mask |= compiled.ends
        left = _UNBOUNDED if self._left is None else self._left
        if compiled.is_wary or left <= self._watch():
            mask = self._closing_mask(mask, left)
        if not mask.any():
            self._fail("no token goes on from here")
            return compiled.ends
        return mask

    def advance(self, token: int) -> None:
        """See `Constraint`."""
        if self._first is not None:
            self._first = None
            return
        self._left = None if self._left is None else self._left - 1
        if token in self._compiled.eos_ids:
            self._ended = True
        elif self._ended or self._matcher.is_stopped() or not self._matcher.consume_token(token):
            self._fail(f"token {token} was not allowed")
        else:
            self._write(token)
            self._way = self._way[1:] if self._way and self._way[0] == token else self._way

    def fork(self) -> GrammarConstraint:
        """See `Constraint`."""
        other = object.__new__(GrammarConstraint)
        other.__dict__.update(self.__dict__)
        other._matcher, other._brackets = self._matcher.deep_copy(), self._brackets.copy()
        return other

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    @property
    def is_over(self) -> bool:
        """See `Constraint`. A number, or a match of ``a+``, is complete but not over: it may have been cut."""
        if self._first is not None or self._matcher.is_error():
            return False
        compiled = self._compiled
        return self._matcher.is_stopped() or (
            self._matcher.is_accepting() and not np.any(compiled.mask(self._matcher) & ~compiled.ends)
        )

    def _write(self, token: int) -> None:
        piece = self._compiled.tokens[token]
        self._brackets.write(piece)
        self._text += piece

    def _watch(self) -> int:
        """Tokens left from which on the way to the end is kept in sight."""
        compiled = self._compiled
        if not compiled.is_json:
            return compiled.margin
        return 2 * compiled.margin + compiled.shortest + self._brackets.depth * (compiled.margin // 2)

    def _closing_mask(self, mask: Mask, left: int) -> Mask:
        compiled = self._compiled
        place = Place(self._matcher, self._brackets, self._text)
        self._way = compiled.closing.renewed(place, self._way)
        if self._way is None:
            return mask
        if not compiled.is_wary and left > compiled.margin + compiled.is_json * len(self._way):
            return mask
        return compiled.closing.safe(place, mask, self._way, left - 1)

    def _fail(self, why: str) -> None:
        error = self._matcher.get_error()[:200]
        _log.warning("%s: the answer leaves its grammar, and ends: %s %s", self._compiled.kind, why, error)
        self._ended = True


class _Compiled:
    """A grammar over one vocabulary."""

    def __init__(self, kind: Kind, wording: Wording, vocabulary: Vocabulary) -> None:
        self.kind, self.margin, self.is_wary = kind, wording.margin, wording.is_wary
        self.size, self.eos_ids = vocabulary.size, frozenset(vocabulary.eos_ids)
        self.tokens = vocabulary.tokens
        self.matcher = LLMatcher(_tokenizer(vocabulary), LLMatcher.grammar_from_lark(wording.text), log_level=0)
        if self.matcher.is_error():
            raise RequestError(f"{kind}: {_reason(self.matcher.get_error())}")
        self.ends = mask_of(vocabulary.eos_ids, vocabulary.size)
        self.ends.flags.writeable = False
        self.is_json = kind in ("json", "json_schema")
        self._is_plain = wording.is_plain
        self.closing = Closing(vocabulary, self.mask, greedy=self.is_json, plain=wording.is_plain)
        self.ways: Recent[bytes, tuple[int, ...] | None] = Recent(16)
        self.shortest = len(self.closing.way(self.matcher, self.brackets()) or ())

    def brackets(self) -> Brackets:
        """Of an answer that begins."""
        return Brackets(counts=not self._is_plain)

    def mask(self, matcher: LLMatcher) -> Mask:
        """What a matcher allows next."""
        mask = np.zeros(num_words(self.size), dtype=np.uint32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return mask


class _Source:
    """A vocabulary as llguidance reads it. Token 0xFF… are special ones to it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = vocabulary.eos_ids[0], None
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]

    def __call__(self, text: str | bytes) -> list[int]:
        """Nothing is tokenised here: grammars do not force (see `wording.py`)."""
        del text
        return []


_compiled: weakref.WeakKeyDictionary[Vocabulary, Recent[Wording, _Compiled]] = weakref.WeakKeyDictionary()
_tokenizers: weakref.WeakKeyDictionary[Vocabulary, LLTokenizer] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    with _lock:
        if vocabulary not in _tokenizers:
            wrapper = TokenizerWrapper(_Source(vocabulary))
            ends = list(vocabulary.eos_ids)
            _tokenizers[vocabulary] = LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=ends)
        return _tokenizers[vocabulary]


def _reason(error: str) -> str:
    """What is wrong, out of a message that may draw the place as well."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    named = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    first = re.sub(r"^at \d+\(\d+\): ", "", lines[0]) if lines else "it is not understood"
    return named or first
