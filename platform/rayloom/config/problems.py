"""From pydantic's validation errors to messages that name line, key and remedy."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rayloom.config.base import Section
from rayloom.errors import ConfigError

Location = tuple[str | int, ...]
Lines = dict[Location, int]
"""Line of each key, from 1; 0 for a key that ``--set`` has given."""
_SURE = 0.8
"""Likeness of keys that stand in another section than the one that was meant: both mistakes in one key are rare."""


def config_error(kind: type[Section], error: ValidationError, path: Path | None, lines: Lines) -> ConfigError:
    """The first of pydantic's problems, with the place in the file and the remedy."""
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "extra_forbidden":
        location: Location = first["loc"]
        message = _unknown_key(kind, location)
    else:
        location = _keys_of(first["loc"])
        message = _message(first, [problem["msg"] for problem in problems if _keys_of(problem["loc"]) == location])
    if first["type"] == "value_error":
        location = _key_named(message, location, lines)
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None)
    place = "--set" if line == 0 else path
    return ConfigError(message, path=place, line=line, key=dotted(location) or None)


def _message(problem: ErrorDetails, alternatives: Sequence[str]) -> str:
    """What is wrong with a value; a union has one alternative for each type that it may hold."""
    if problem["type"] == "missing":
        return "this key is required"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"expected a section with keys of its own, got {problem['input']!r}"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    text = ", or ".join(f"{message[0].lower()}{message[1:]}" for message in alternatives)
    return text if isinstance(problem["input"], dict | list) else f"{text} (got {problem['input']!r})"


def _keys_of(location: Location) -> Location:
    # pydantic puts the members of a union into the location ("literal['auto']", "list[str]", "bool").
    types_of_union = {"bool", "int", "float", "str", "list", "dict"}
    return tuple(part for part in location if isinstance(part, int) or (_is_key(part) and part not in types_of_union))


def _is_key(part: str) -> bool:
    """Also of a mapping whose keys are dotted, such as a sweep's space."""
    return all(name.isidentifier() for name in part.split("."))


def _key_named(message: str, section: Location, lines: Lines) -> Location:
    """The first key in the section that the message of a contradiction names; the section itself if none."""
    inside = {str(key[-1]): key for key in reversed(lines) if key[: len(section)] == section != key}
    return next((inside[word] for word in re.findall(r"\w+", message) if word in inside), section)


def _unknown_key(kind: type[Section], location: Location) -> str:
    key, known = str(location[-1]), list(_fields_at(kind, location[:-1]))
    elsewhere = {
        name: f"{section}.{name}"
        for section, field in reversed(kind.model_fields.items())
        for name in _sub_fields(field.annotation)
    }
    near = elsewhere.get(key) or nearest(key, known) or elsewhere.get(nearest(key, elsewhere, cutoff=_SURE) or "")
    return f"unknown key; did you mean '{near}'?" if near else f"unknown key; known here: {', '.join(known)}"


_SHORT_FORMS = {"lr": "learning_rate", "epochs": "num_epochs", "wd": "weight_decay"}


def nearest(key: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known key that a wrong one was likely meant to be.

    Args:
        key: The wrong one.
        known: Keys that there are.
        cutoff: How alike the two must be, up to 1.
    """
    key = key.lower().replace("-", "_")
    matches = difflib.get_close_matches(_SHORT_FORMS.get(key, key), list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def _fields_at(kind: type[BaseModel], location: Sequence[str | int]) -> Sequence[str]:
    fields: Sequence[str] = list(kind.model_fields)
    annotation: Any = kind
    for part in location:
        section = _section_in(annotation)
        field = section.model_fields.get(str(part)) if section else None
        # A mapping has keys of its own, and sections below them.
        annotation = field.annotation if field else typing.get_args(annotation)[1] if _is_mapping(annotation) else None
        fields = _sub_fields(annotation)
    return fields


def _sub_fields(annotation: Any) -> Sequence[str]:
    section = _section_in(annotation)
    return list(section.model_fields) if section else []


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for arg in typing.get_args(annotation) if (found := _section_in(arg))), None)
    return None


def dotted(location: Location) -> str:
    """A key as the user writes it after ``--set``."""
    return ".".join(str(part) for part in location)
