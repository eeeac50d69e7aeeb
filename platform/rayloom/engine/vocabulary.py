"""What every token writes, in bytes: what constraints on text are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

_NO_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that no text holds."""


class Vocabulary:
    """Bytes of all tokens in running text. Equal only to itself.

    Args:
        tokens: Bytes of each token by id; nothing for special tokens and ids that no token has.
        size: Width of the model's logits; may exceed the number of tokens, or (rarely) fall short of it.
        eos_ids: Tokens that end a sequence.
        drops_space: Whether decoding drops a space before the first token's text, as sentencepiece
            tokenizers do.
    """

    def __init__(
        self, tokens: Sequence[bytes], *, size: int, eos_ids: Sequence[int] = (), drops_space: bool = False
    ) -> None:
        self.size, self.drops_space = size, drops_space
        self.tokens: tuple[bytes, ...] = (*tokens, *[b""] * (size - len(tokens)))[:size]
        self.eos_ids = tuple(token for token in dict.fromkeys(eos_ids) if 0 <= token < size)
        self._relatives: dict[tuple[int, ...], Vocabulary] = {self.eos_ids: self}

    @cached_property
    def letters(self) -> frozenset[str] | None:
        """Characters that have a token of their own; None if there is one for every byte, and so for every text."""
        pieces = set(self.tokens)
        if all(bytes([byte]) in pieces for byte in range(256) if byte not in _NO_UTF8):
            return None
        decoded = (piece.decode(errors="replace") for piece in pieces)
        return frozenset(text for text in decoded if len(text) == 1 and text != "\ufffd")

    def ending_with(self, eos_ids: Sequence[int]) -> Vocabulary:
        """The same tokens with other ends; the same object for equal ends."""
        ends = tuple(token for token in dict.fromkeys(eos_ids) if 0 <= token < self.size)
        if ends not in self._relatives:
            relative = Vocabulary(self.tokens, size=self.size, eos_ids=ends, drops_space=self.drops_space)
            relative._relatives = self._relatives
            self._relatives[ends] = relative
        return self._relatives[ends]
