"""Text that cannot be written as UTF-8: found where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rayloom.data.rows import Row, row_error


def check_unicode(row: Row) -> None:
    """Refuse text that cannot be written as UTF-8.

    Raises:
        DataError: Names the row's place and the column.
    """
    for column, value in row.items():
        for text in _texts(value):
            _check_text(text, row, column)
        _check_text(column, row, None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _check_text(text: str, row: Row, column: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        where = f"line {text.count(chr(10), 0, error.start) + 1} of the text: " if "\n" in text else ""
        if 0xDC80 <= code <= 0xDCFF:  # what surrogateescape makes of a byte
            message = not_utf8(code - 0xDC00)
        else:
            message = f"half a character (\\u{code:04x}) stands alone; write whole characters"
        raise row_error(where + message, row, column=column) from error


def not_utf8(byte: int) -> str:
    """What to say of a byte that is no part of UTF-8."""
    return f"byte 0x{byte:02X} is not UTF-8; save the file as UTF-8"
