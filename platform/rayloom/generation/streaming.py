"""Text while it is written: whole characters only, and nothing that a stop string may still cut away."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rayloom.generation.forbidden import decode

_UNKNOWN = "\ufffd"


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
