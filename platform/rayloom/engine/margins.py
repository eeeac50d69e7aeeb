"""By how much one token can lengthen the shortest way to an answer's end, in bytes and so in tokens.

With more tokens left than the shortest way and this margin, a model may write what the grammar allows; with fewer, each
token is looked at first (`closing.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_UNKNOWN = 64
_LEAST = 16
_MOST = 2048
_MOST_DEPTH = 12
_DECIDING = frozenset(
    [
        "allOf", "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies",
        "patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties",
        "unevaluatedItems", "minItems", "maxItems", "prefixItems", "additionalItems", "contains", "minContains",
        "maxContains", "uniqueItems", "$dynamicRef", "$recursiveRef",
    ]
)  # fmt: skip
"""Words of a schema that may let finished values, or their number, decide what follows."""
_SCALARS = ("string", "number", "integer", "boolean", "null")


def choice_margin(choices: Sequence[str]) -> int:
    """No text of a choice has more to go than the longest."""
    return max(len(choice.encode()) for choice in choices)


def regex_margin(regex: str) -> int:
    """The longest of the shortest ways from anywhere in an expression to its end."""
    try:
        parsed = re._parser.parse(regex)  # type: ignore[attr-defined]
    except (re.error, OverflowError, RecursionError, FutureWarning):  # Rust's syntax knows what Python's does not
        return _UNKNOWN + len(regex)
    widest = 1 if regex.isascii() and "\\u" not in regex else 4
    return max(1, min(_MOST, widest * _farthest(parsed)))


def json_margin(schema: dict[str, Any]) -> int:
    """The dearest value that may be begun without need, twice: a token seldom begins more."""
    costs = _Costs(schema)
    dearest = max((costs.of(node, 0) for node in _inner(schema)), default=0)
    return min(_MOST, _LEAST + 2 * dearest)


def is_plain(schema: Any) -> bool:
    """Whether what follows a finished value never depends on what is in it, nor on how many items were before."""
    return isinstance(schema, dict) and all(map(_is_plain, (schema, *_inner(schema))))


def _is_plain(node: dict[str, Any]) -> bool:
    fixed = [node.get("const"), *(node["enum"] if isinstance(node.get("enum"), list) else ())]
    return (
        _DECIDING.isdisjoint(node)
        and not isinstance(node.get("items"), list)
        and not any(isinstance(value, list | dict) for value in fixed)
        and all(_is_clear(node[union]) for union in ("anyOf", "oneOf") if union in node)
    )


def _is_clear(branches: Any) -> bool:
    """Whether the first byte of an object or array says which branch it is."""
    if not isinstance(branches, list):
        return False
    kinds = [branch.get("type") if isinstance(branch, dict) else None for branch in branches]
    return sum(kind not in _SCALARS for kind in kinds) <= 1


def _farthest(parsed: Any) -> int:
    rest, farthest = 0, 0
    for operation, value in reversed(list(parsed)):
        least, inside = _widths(operation, value)
        farthest = max(farthest, inside + rest)
        rest = min(_MOST, rest + least)
    return farthest


def _widths(operation: Any, value: Any) -> tuple[int, int]:
    """Least width of one part, and the farthest that any place in it is from the part's end."""
    name = str(operation)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, _, part = value
        least, inside = part.getwidth()[0], _farthest(part)
        return min(_MOST, low * least), min(_MOST, inside + max(low - 1, 0) * least)
    if name == "BRANCH":
        branches = value[1]
        return min(part.getwidth()[0] for part in branches), max(_farthest(part) for part in branches)
    if name in ("SUBPATTERN", "ATOMIC_GROUP"):
        part = value[-1] if name == "SUBPATTERN" else value
        return part.getwidth()[0], _farthest(part)
    if name == "AT":
        return 0, 0
    return 1, 1


def _inner(schema: Any) -> Iterator[Any]:
    """Every schema inside of a schema (and a few things that only look like one)."""
    values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for value in values:
        if isinstance(value, dict):
            yield value
        yield from _inner(value)


class _Costs:
    """What values of a schema cost. Each part is looked at once per depth: references may lead around for ever.

    Args:
        root: The schema.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}

    def of(self, node: Any, depth: int) -> int:
        """About the fewest bytes of a value; those nested too deep count nothing."""
        if not isinstance(node, dict) or depth > _MOST_DEPTH:
            return 2
        key = id(node), depth
        if key not in self._known:
            self._known[key] = _fixed(node) or min(self._own(node) + self._inside(node, depth), _MOST)
        return self._known[key]

    def _own(self, node: dict[str, Any]) -> int:
        cost = 2 + _number(node.get("minLength")) + _number(node.get("minProperties")) * 6
        if isinstance(node.get("pattern"), str):
            cost += regex_margin(node["pattern"])
        return cost + 36 * ("format" in node)

    def _inside(self, node: dict[str, Any], depth: int) -> int:
        cost = 0
        if isinstance(reference := node.get("$ref"), str):
            cost += self.of(_resolve(reference, self._root), depth + 1)
        cost += _number(node.get("minItems")) * (1 + self.of(node.get("items", {}), depth + 1))
        named, required = node.get("properties"), node.get("required")
        properties = named if isinstance(named, dict) else {}
        for name in required if isinstance(required, list) else ():
            cost += len(str(name)) + 4 + self.of(properties.get(str(name), {}), depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            if isinstance(node.get(union), list) and node[union]:
                cost += max(self.of(part, depth + 1) for part in node[union])
        return cost


def _fixed(node: dict[str, Any]) -> int:
    """Bytes of a value that the schema names; 0 where it does not."""
    if "const" in node:
        return len(json.dumps(node["const"]))
    if isinstance(node.get("enum"), list) and node["enum"]:
        return max(len(json.dumps(item)) for item in node["enum"])
    return 0


def _number(value: Any) -> int:
    """A count that a schema gives; never so many that it matters how many."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(min(value, _MOST)) if is_number and value > 0 else 0


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    node: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~"), {}) if part and isinstance(node, dict) else node
    return node
