"""Where a growing JSON text is: in a string or not, how deep, and behind what."""

from __future__ import annotations

_SPACE = b" \t\r\n"


class Brackets:
    """Reads a JSON text byte by byte; gives no errors on other text, only useless answers.

    Args:
        counts: Keep all items of an array in the outline: how many there are may decide what follows.

    Attributes:
        quoted: Whether the text goes on inside a string.
        opened: How long the text was when its last string began.
        outline: The text without spaces and without what is inside of values: names and brackets stay.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self.quoted, self.opened, self.outline = False, 0, b""
        self._counts, self._size = counts, 0
        self._inside: tuple[int, ...] = ()
        self._escaped = self._names = False

    @property
    def depth(self) -> int:
        """Brackets and braces open."""
        return len(self._inside)

    def write(self, text: bytes) -> None:
        """Go on with the text."""
        for at, byte in enumerate(text, start=self._size):
            if self.quoted:
                self._write_quoted(byte)
            elif byte not in _SPACE:
                self._write_plain(byte, at)
        self._size += len(text)

    def copy(self) -> Brackets:
        """An independent one in the same state."""
        other = object.__new__(Brackets)
        other.__dict__.update(self.__dict__)
        return other

    def _write_quoted(self, byte: int) -> None:
        self.quoted = self._escaped or byte != 0x22
        self._escaped = not self._escaped and byte == 0x5C
        if self._names or not self.quoted:
            self.outline += bytes((byte,))

    def _write_plain(self, byte: int, at: int) -> None:
        if byte == 0x22:
            # A string in an object is a name unless a colon is before it.
            self._names = not self._is_array and not self.outline.endswith(b":")
            self.quoted, self.opened = True, at
        elif byte in b"{[":
            self._inside += (len(self.outline),)
        elif byte in b"}]":
            self._inside = self._inside[:-1]
        elif byte in b"0123456789":
            if self.outline.endswith(b"0"):
                return
            byte = 0x30
        elif byte == 0x2C and self._is_array and not self._counts:
            self.outline = self.outline[: self._inside[-1] + 1]
        self.outline += bytes((byte,))

    @property
    def _is_array(self) -> bool:
        return bool(self._inside) and self.outline[self._inside[-1]] == 0x5B
