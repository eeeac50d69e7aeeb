"""From a YAML file to a checked config, with errors that name line, key and remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rayloom.config.base import Section
from rayloom.config.run import EvaluateJob, RunConfig
from rayloom.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)
Lines = dict[tuple[str | int, ...], int]

_PATH_KEYS = (("dataset", "train_file"), ("dataset", "validation_file"), ("dataset", "test_file"))


def load_run_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a training config.

    Args:
        path: YAML file. Data files in it are relative to its folder.
        overrides: ``a.b=c`` settings that go before the file's; values are YAML.

    Raises:
        ConfigError: The file cannot be read, or something in it is wrong.
    """
    return load_section(RunConfig, path, overrides)


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig | EvaluateJob:
    """Read a file from ``jobs/``: an evaluation if it names an artifact, else a training run."""
    values, _ = read_yaml(Path(path))
    return load_section(EvaluateJob if "artifact" in values else RunConfig, path, overrides)


def load_section(kind: type[SectionT], path: Path | str, overrides: Sequence[str] = ()) -> SectionT:
    """Read a YAML file as the given section. See `load_run_config` for arguments and errors."""
    path = Path(path)
    values, lines = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    for keys in _PATH_KEYS:
        _anchor_path(values, keys, path.resolve().parent)
    return validate(kind, values, path=path, lines=lines)


def validate(
    kind: type[SectionT], values: Mapping[str, Any], *, path: Path | None = None, lines: Lines | None = None
) -> SectionT:
    """Check values against a section; the first problem becomes a `ConfigError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _config_error(kind, error, path, lines or {}) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a mapping, and the line of every key in it.

    Raises:
        ConfigError: No such file, no UTF-8, no YAML, a key twice, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read as UTF-8 text: {error}", path=path) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _key_lines(node, path) if node else {}
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"not valid YAML: {error.problem}", path=path, line=line) from None
    if not isinstance(values, dict):
        raise ConfigError("expected a mapping such as 'model: …' at the top", path=path, line=1)
    return values, lines


def json_schema() -> dict[str, Any]:
    """JSON schema of `config.yaml`, for editors."""
    return RunConfig.model_json_schema()


def config_hash(config: BaseModel) -> str:
    """SHA-256 of a config's canonical JSON."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML: every field, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _key_lines(node: yaml.Node, path: Path, at: tuple[str | int, ...] = ()) -> Lines:
    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*at, str(key_node.value))
            if key in lines:
                raise ConfigError("this key stands twice", path=path, line=key_node.start_mark.line + 1, key=_dots(key))
            lines[key] = key_node.start_mark.line + 1
            lines |= _key_lines(value_node, path, key)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*at, index] = item.start_mark.line + 1
            lines |= _key_lines(item, path, (*at, index))
    return lines


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: expected a.b=c, such as training.num_epochs=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: '{parent}' is a value, not a section")
        values[parent] = dict(inner or {})
        values = values[parent]
    values[last] = value


def _anchor_path(values: dict[str, Any], keys: tuple[str, str], folder: Path) -> None:
    section = values.get(keys[0])
    if isinstance(section, dict) and isinstance(section.get(keys[1]), str):
        text = section[keys[1]]
        if "://" not in text:
            section[keys[1]] = str(folder / text)


def _config_error(kind: type[Section], error: ValidationError, path: Path | None, lines: Lines) -> ConfigError:
    problem = error.errors(include_url=False)[0]
    location = tuple(part for part in problem["loc"] if _is_key(part))
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), None)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = _unknown_key(kind, location)
    elif problem["type"] == "missing":
        message = "this key is required"
    elif not isinstance(problem["input"], dict | list):
        message = f"{message[0].lower()}{message[1:]} (got {problem['input']!r})"
    return ConfigError(message, path=path, line=line, key=_dots(location) or None)


def _is_key(part: str | int) -> bool:
    # pydantic puts the members of a union into the location ("literal['auto']", "list[str]", "bool").
    return isinstance(part, int) or part.isidentifier() and part not in {"bool", "int", "float", "str", "list", "dict"}


def _unknown_key(kind: type[Section], location: tuple[str | int, ...]) -> str:
    known = list(_fields_at(kind, location[:-1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean '{near[0]}'?"
    elsewhere = [name for name, field in kind.model_fields.items() if location[-1] in _sub_fields(field.annotation)]
    if elsewhere:
        return f"unknown key here; it belongs under '{elsewhere[0]}'"
    return f"unknown key; known here: {', '.join(known)}"


def _fields_at(kind: type[BaseModel], location: Sequence[str | int]) -> Sequence[str]:
    fields: Sequence[str] = list(kind.model_fields)
    annotation: Any = kind
    for part in location:
        section = _section_in(annotation)
        field = section.model_fields.get(str(part)) if section else None
        annotation = field.annotation if field else None
        fields = _sub_fields(annotation)
    return fields


def _sub_fields(annotation: Any) -> Sequence[str]:
    section = _section_in(annotation)
    return list(section.model_fields) if section else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for arg in typing.get_args(annotation) if (found := _section_in(arg))), None)
    return None


def _dots(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)
