from __future__ import annotations

from typing import Any

import pytest

from rayloom.engine.margins import json_margin, regex_margin


def tree_of_references(width: int) -> dict[str, Any]:
    """Walked down as written it has width ** depth leaves."""
    names = [str(place) for place in range(width)]
    node = {"type": "object", "properties": {name: {"$ref": "#/$defs/a"} for name in names}, "required": names}
    return {"$defs": {"a": node, "b": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/a"}]}}}


def test_references_that_lead_around_are_walked_once() -> None:
    assert json_margin(tree_of_references(2)) <= json_margin(tree_of_references(40)) <= 2048


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"minItems": float("inf")}},
        {"items": {"minLength": 10**400}},
        {"items": {"minLength": -5, "minProperties": True}},
        {"items": {"required": 5}},
        {"items": {"required": [["x"], {"y": 1}, None], "properties": []}},
        {"items": {"pattern": "(" * 5000}},
        {"items": {"$ref": "#/items"}},
        {"items": {"enum": [], "anyOf": [], "oneOf": {}}},
    ],
    ids=str,
)
def test_schemas_that_make_no_sense_have_a_margin(schema: dict[str, Any]) -> None:
    assert 0 < json_margin(schema) <= 2048


@pytest.mark.parametrize("regex", ["(" * 5000, "a{99999999999999999999}", "(a{1000}){1000}", "(?P<x>", "[" * 100])
def test_expressions_that_make_no_sense_have_a_margin(regex: str) -> None:
    assert regex_margin(regex) > 0
