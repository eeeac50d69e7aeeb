"""Text while it is written: whole characters only, and nothing that a stop string may still cut away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from rayloom.generation.forbidden import decode
from rayloom.generation.types import GenerationRequest

_UNKNOWN = "\ufffd"


class Cancelled(Exception):  # noqa: N818 - an event, not an error
    """The reader of a stream has gone away."""


class TokenQueue:
    """Between the thread that generates and the one that reads: token ids, then text or an error."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[int | str | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()

    def watch(self, start: int, ends: Sequence[int]) -> StoppingCriteria:
        """A criterion that never stops, but sees every token after the first ``start`` ones, except ends."""
        return _Watcher(self, start, frozenset(ends))

    def put(self, token: int) -> None:
        """Hand one token over.

        Raises:
            Cancelled: Nobody reads any more.
        """
        if self._cancelled.is_set():
            raise Cancelled
        self._items.put(token)

    def finish(self, text: str) -> None:
        """Nothing more will come; the whole answer is ``text``."""
        self._items.put(text)

    def fail(self, error: BaseException) -> None:
        """The generation broke off."""
        self._items.put(error)

    def cancel(self) -> None:
        """Stop the generation at its next token."""
        self._cancelled.set()

    def get(self) -> int | str:
        """A token, or the final text.

        Raises:
            BaseException: Whatever broke the generation off.
        """
        item = self._items.get()
        if isinstance(item, BaseException):
            raise item
        return item


def text_pieces(
    tokens: TokenQueue,
    tokenizer: PreTrainedTokenizerBase,
    request: GenerationRequest,
    stop_strings: Sequence[str],
) -> Iterator[str]:
    """Turn tokens into pieces of text whose concatenation is the final text.

    Args:
        tokens: Where they come from.
        tokenizer: The model's tokenizer.
        request: For its forced prefix, which is part of the text.
        stop_strings: Text that may be the start of one of these is held back.
    """
    pieces = Pieces(tokenizer, request.prefix_ids, stop_strings)
    while isinstance(item := tokens.get(), int):
        if piece := pieces.add(item):
            yield piece
    if piece := pieces.finish(item):
        yield piece


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

    def add(self, token: int) -> str:
        """What may be shown now that this token is there."""
        self._ids.append(token)
        # A stop string may begin in the prompt, unseen here: only the final text decides on the last token.
        ids = self._ids[:-1] if self._stop_strings else self._ids
        safe = settled(decode(self._tokenizer, ids), self._stop_strings)
        if not safe.startswith(self._sent):
            return ""
        piece, self._sent = safe[len(self._sent) :], safe
        return piece

    def finish(self, text: str) -> str:
        """The rest, now that the final text is known."""
        return text[len(self._sent) :]


def settled(text: str, stop_strings: Sequence[str]) -> str:
    """The part of a growing text that later tokens cannot change."""
    for stop in stop_strings:
        place = text.find(stop)
        if place >= 0:
            text = text[:place]
    text = text.rstrip(_UNKNOWN)
    held = max((_overlap(text, stop) for stop in stop_strings), default=0)
    if any(text in stop for stop in stop_strings):
        return ""
    return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that starts the stop string."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class _Watcher(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, tokens: TokenQueue, start: int, ends: frozenset[int]) -> None:
        self._tokens, self._seen, self._ends = tokens, start, ends

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: object) -> torch.Tensor:
        del scores, kwargs
        new = input_ids[0, self._seen :].tolist()
        self._seen = input_ids.shape[1]
        for token in new:
            if token not in self._ends:
                self._tokens.put(token)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
