"""What a JSON body must not be, whatever its fields: it is looked at before anything is made of it."""

from __future__ import annotations

import json
from typing import Any

_MOST_FIELDS = 256
_MOST_DEPTH = 64
"""Far more than any schema needs, and less than what makes a program that walks down a value fail."""


def check_shape(values: dict[str, Any]) -> None:
    """Refuse bodies that no program should have to walk through.

    Args:
        values: A body as JSON.

    Raises:
        ValueError: It has too many fields, is nested too deeply, or holds text that is no Unicode.
    """
    check_fields(values, "the body")
    if _is_deep(values):
        raise ValueError(f"the body is nested more than {_MOST_DEPTH} levels deep")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode (half of a surrogate pair)") from None


def check_fields(values: dict[str, Any], what: str) -> None:
    """Refuse an object with so many fields that to name those that it should not have takes long.

    Args:
        values: A body, or a part of one that has fields of its own.
        what: It is.

    Raises:
        ValueError: It has.
    """
    if len(values) > _MOST_FIELDS:
        raise ValueError(f"{what} has {len(values)} fields; at most {_MOST_FIELDS} make sense")


def shortened(text: str, most: int = 100) -> str:
    """What a caller sent, as far as it may stand in a message: cut, and without halves of characters."""
    whole = text.encode(errors="replace").decode()
    return whole if len(whole) <= most else f"{whole[:most]}…"


def _is_deep(value: Any) -> bool:
    """Level by level, for what goes down by itself fails at the very bodies that are looked for."""
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            each
            for outer in level
            for each in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True
