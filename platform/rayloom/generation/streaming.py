"""Text while it is written: whole characters only, and nothing that a stop string may still cut away."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rayloom.generation.types import Chunk, GeneratedSequence, TokenLogprob
from rayloom.generation.words import UNKNOWN, decode

_WINDOW = 32
"""Tokens that are decoded again with each one that comes, and at most twice as many."""


class GrowingText:
    """Text of tokens that come one by one, without decoding all of them each time.

    Args:
        tokenizer: The model's tokenizer.
        window: See `_WINDOW`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: int = _WINDOW) -> None:
        self._tokenizer, self._window = tokenizer, window
        # Text of the tokens before `_known_to`, and how much of that those from `_begin` on have written.
        self._begin, self._known_to, self._known, self._num_own = 0, 0, "", 0

    def of(self, ids: Sequence[int]) -> str:
        """Text of all tokens.

        Args:
            ids: Those of the last time, and what has come since.
        """
        # What begins in the middle of a text may lose a space, or a character, at its start: never behind `_known`.
        recent = decode(self._tokenizer, ids[self._begin :])
        text = self._known + recent[self._num_own :]
        if len(ids) - self._known_to >= self._window and not text.endswith(UNKNOWN):
            own = decode(self._tokenizer, ids[self._known_to :])
            if own:
                self._begin, self._known_to, self._known, self._num_own = self._known_to, len(ids), text, len(own)
        return text


class Pieces:
    """Pieces of a growing text. Together they are the final text.

    Args:
        tokenizer: The model's tokenizer.
        prefix_ids: Forced start of the answer, part of the text.
        stop_strings: Text that may be the start of one of these is held back.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], stop_strings: Sequence[str]
    ) -> None:
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._ids, self._sent = list(prefix_ids), ""
        self._growing = GrowingText(tokenizer)
        # A stop string may begin in the prompt, unseen here: only the final text decides on the last token.
        self._lag = 1 if stop_strings else 0
        self._ends: list[int] = [] if self._lag else [self._end(prefix_ids)]

    @property
    def sent(self) -> str:
        """What was given out."""
        return self._sent

    @property
    def ends(self) -> Sequence[int]:
        """Length of the text, in whole characters, before and after each generated token."""
        return self._ends

    def add(self, token: int) -> str:
        """What may be shown now that this token is there."""
        self._ids.append(token)
        text = self._growing.of(self._ids[: len(self._ids) - self._lag])
        self._ends.append(len(text.rstrip(UNKNOWN)))
        safe = settled(text, self._stop_strings)
        if not safe.startswith(self._sent):
            return ""
        piece, self._sent = safe[len(self._sent) :], safe
        return piece

    def finish(self, text: str) -> str:
        """The rest, now that the final text is known."""
        if self._lag:
            self._ends.append(self._end(self._ids))
        rest = text[len(self._sent) :]
        self._sent = text
        return rest

    def _end(self, ids: Sequence[int]) -> int:
        return len(decode(self._tokenizer, ids).rstrip(UNKNOWN))


class WithoutStart:
    """Takes a given start off a text that comes in pieces; nothing is held longer than needed to know.

    Args:
        start: What is taken off, if the text begins with it.

    Attributes:
        num_cut: Characters that were taken off.
    """

    def __init__(self, start: str) -> None:
        self._start, self._held, self._undecided = start, "", bool(start)
        self.num_cut = 0

    def add(self, piece: str) -> str:
        """What may be shown now."""
        if not self._undecided:
            return piece
        self._held += piece
        if len(self._held) < len(self._start) and self._start.startswith(self._held):
            return ""
        return self.finish()

    def finish(self) -> str:
        """What is still held."""
        held, self._held = self._held, ""
        if self._undecided and held.startswith(self._start):
            self.num_cut = len(self._start)
        self._undecided = False
        return held[self.num_cut :] if held else held


class Answer:
    """One answer while it grows: its text, and log-probabilities of the tokens whose text is out.

    Args:
        index: Which of the request's answers.
        pieces: Nothing was added to them yet.
        start: Taken off the text; see `WithoutStart`.
        num_prefix: Tokens of the forced prefix, counted with the first chunk.
    """

    def __init__(self, index: int, pieces: Pieces, *, start: str = "", num_prefix: int = 0) -> None:
        self._index, self._pieces, self._start = index, pieces, WithoutStart(start)
        self._num_prefix, self._uncounted = num_prefix, num_prefix
        self._num_added, self._num_told = 0, 0
        self._waiting: deque[TokenLogprob] = deque()

    def add(self, token: int, logprob: TokenLogprob | None) -> Chunk:
        """What there is to tell now that this token is there."""
        text = self._start.add(self._pieces.add(token))
        self._num_added += 1
        if logprob is not None:
            self._waiting.append(logprob)
        return self._chunk(text, 1)

    def finish(self, sequence: GeneratedSequence) -> Chunk:
        """The rest, now that the whole answer is known; all of it, for an answer that was not told token by token."""
        late = sequence.token_ids[self._num_prefix + self._num_added :]
        text = ""
        if sequence.logprobs is not None:
            text = "".join(self._start.add(self._pieces.add(token)) for token in late)
            self._waiting += sequence.logprobs[self._num_added :]
        text += self._start.add(self._pieces.finish(sequence.text)) + self._start.finish()
        return self._chunk(text, len(late), sequence)

    def _chunk(self, text: str, num_tokens: int, sequence: GeneratedSequence | None = None) -> Chunk:
        logprobs, offsets = self._settled()
        num_tokens, self._uncounted = num_tokens + self._uncounted, 0
        if sequence is None:
            return Chunk(self._index, text, num_tokens, logprobs, offsets)
        return Chunk(
            self._index, text, num_tokens, logprobs, offsets, end=sequence.end, finish_reason=sequence.finish_reason
        )

    def _settled(self) -> tuple[tuple[TokenLogprob, ...], tuple[int, ...]]:
        """Tokens all of whose text is out, and where they begin."""
        logprobs: list[TokenLogprob] = []
        offsets: list[int] = []
        ends, sent = self._pieces.ends, self._pieces.sent
        while self._waiting and self._num_told + 1 < len(ends) and ends[self._num_told + 1] <= len(sent):
            logprobs.append(self._waiting.popleft())
            begin = ends[self._num_told]
            if not logprobs[-1].token.startswith(UNKNOWN):
                # In front of it there may be bytes that have not become a character.
                own = sent[begin : ends[self._num_told + 1]]
                begin += len(own) - len(own.lstrip(UNKNOWN))
            offsets.append(max(begin - self._start.num_cut, 0))
            self._num_told += 1
        return tuple(logprobs), tuple(offsets)


def settled(text: str, stop_strings: Sequence[str]) -> str:
    """The part of a growing text that later tokens cannot change."""
    for stop in stop_strings:
        place = text.find(stop)
        if place >= 0:
            text = text[:place]
    text = text.rstrip(UNKNOWN)
    held = max((_overlap(text, stop) for stop in stop_strings), default=0)
    if any(text in stop for stop in stop_strings):
        return ""
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that starts the stop string."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)
