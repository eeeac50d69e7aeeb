"""Stop strings, found as they are written: also across token borders, and inside of tokens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rayloom.errors import RequestError
from rayloom.generation.words import Pieces, token_pieces

_written: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[bytes, bool]] = weakref.WeakKeyDictionary()
_MOST_KNOWN = 1000


class StopStrings:
    """Whether the last token completes a stop string: what ``transformers.StopStringCriteria`` stops by.

    A stop string counts where it ends in the last token, also if it begins in the prompt. As there, no more
    tokens are looked at than the longest stop string has bytes (characters, if no token is less than one).

    Args:
        tokenizer: The model's tokenizer.
        stop_strings: What ends a sequence.

    Raises:
        RequestError: An empty stop string, or none that the tokenizer's tokens could end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        if not all(stop_strings):
            raise RequestError("stop_strings must not be empty strings")
        pieces = token_pieces(tokenizer)
        self._pieces = pieces.by_id
        self._stops = tuple(stop.encode() for stop in stop_strings)
        self._window = max(len(stop.encode() if pieces.in_bytes else stop) for stop in stop_strings)
        self._reach = max(len(stop) for stop in self._stops) - 1
        if not any(_can_end(tokenizer, pieces, stop) for stop in self._stops):
            raise RequestError(f"stop_strings {list(stop_strings)}: no token of this model can end one of them")

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of a sequence's tokens completes a stop string."""
        last = self._piece(tokens[-1]) if tokens else None
        if not last:
            return False
        before = self._before(tokens)
        # An occurrence must end in the last token, so it reaches back by one byte less than it has.
        return any(stop in before[max(len(before) - len(stop) + 1, 0) :] + last for stop in self._stops)

    def _before(self, tokens: Sequence[int]) -> bytes:
        """As much of the text before the last token as a stop string can reach into."""
        parts: list[bytes] = []
        missing = self._reach
        for place in range(len(tokens) - 2, max(len(tokens) - self._window, 0) - 1, -1):
            piece = self._piece(tokens[place])
            if piece is None or missing <= 0:
                break
            parts.append(piece)
            missing -= len(piece)
        return b"".join(reversed(parts))

    def _piece(self, token: int) -> bytes | None:
        return self._pieces[token] if 0 <= token < len(self._pieces) else None


def _can_end(tokenizer: PreTrainedTokenizerBase, pieces: Pieces, stop: bytes) -> bool:
    """Whether some token begins with an end of the stop string, or holds it."""
    known = _written.setdefault(tokenizer, {})
    if stop not in known:
        if len(known) >= _MOST_KNOWN:
            known.clear()  # callers may have any number of them
        longest = max((len(piece) for piece in pieces.by_id if piece), default=0)
        ends = tuple(stop[-size:] for size in range(1, min(len(stop), longest) + 1))
        known[stop] = any(piece.startswith(ends) or stop in piece for piece in pieces.by_id if piece)
    return known[stop]
