"""Where a growing JSON text is: in a string or not, and how deep."""

from __future__ import annotations


class Brackets:
    """Reads a JSON text byte by byte; gives no errors on other text, only useless answers.

    Attributes:
        depth: Brackets and braces open.
        quoted: Whether the text goes on inside a string.
    """

    def __init__(self) -> None:
        self.depth, self.quoted, self._escaped = 0, False, False

    def write(self, text: bytes) -> None:
        """Go on with the text."""
        for byte in text:
            if self.quoted:
                self.quoted = self._escaped or byte != 0x22
                self._escaped = not self._escaped and byte == 0x5C
            elif byte == 0x22:
                self.quoted = True
            elif byte in b"{[":
                self.depth += 1
            elif byte in b"}]":
                self.depth = max(self.depth - 1, 0)

    def copy(self) -> Brackets:
        """An independent one in the same state."""
        other = Brackets()
        other.depth, other.quoted, other._escaped = self.depth, self.quoted, self._escaped
        return other
