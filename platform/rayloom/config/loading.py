"""From a YAML file to a checked config, with errors that name line, key and remedy."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rayloom.config.base import Section
from rayloom.config.problems import Lines, Location, config_error, dotted
from rayloom.config.run import EvaluateJob, RunConfig
from rayloom.config.sweep import SweepConfig
from rayloom.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
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


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig | EvaluateJob | SweepConfig:
    """Read a file from ``jobs/``: an evaluation if it names an artifact, a sweep if a space, else a training run."""
    values, _ = read_yaml(Path(path))
    if "artifact" in values:
        return load_section(EvaluateJob, path, overrides)
    if "space" in values:
        return load_section(SweepConfig, path, overrides)
    if "systems" in values:
        raise ConfigError(f"this is an experiment: run it with rayloom experiments run {path}", path=path)
    return load_section(RunConfig, path, overrides)


def load_section(kind: type[SectionT], path: Path | str, overrides: Sequence[str] = ()) -> SectionT:
    """Read a YAML file as the given section. See `load_run_config` for arguments and errors."""
    path = Path(path)
    values, lines = read_values(path, overrides)
    for keys in _PATH_KEYS:
        _anchor_path(values, keys, path.resolve().parent)
    return validate(kind, values, path=path, lines=lines)


def read_values(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Lines]:
    """A file's values with ``a.b=c`` overrides on top, and the line of every key (0 for an override's)."""
    values, lines = read_yaml(path)
    for override in overrides:
        lines[_apply_override(values, override)] = 0
    return values, lines


def build_section(kind: type[SectionT], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> SectionT:
    """A section from values at hand, such as command line arguments, with ``a.b=c`` overrides on top."""
    merged, lines = dict(values), Lines()
    for override in overrides:
        lines[_apply_override(merged, override)] = 0
    for keys in _PATH_KEYS:
        _anchor_path(merged, keys, Path.cwd())
    return validate(kind, merged, lines=lines)


def validate(
    kind: type[SectionT], values: Mapping[str, Any], *, path: Path | None = None, lines: Lines | None = None
) -> SectionT:
    """Check values against a section; the first problem becomes a `ConfigError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise config_error(kind, error, path, lines or {}) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a mapping, and the line of every key in it.

    Raises:
        ConfigError: No such file, no UTF-8, no YAML, a key twice, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", path=path) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder, a YAML file is wanted", path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read as UTF-8 text: {error}", path=path) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines = _key_lines(node, path) if node else {}
        values = parse_yaml(text)
    except RecursionError:
        raise ConfigError("not valid YAML: an alias (*name) stands inside what it names", path=path) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"not valid YAML: {error.problem}", path=path, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", path=path) from None
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
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str) -> Any:
    """A YAML value as configs read it.

    Raises:
        yaml.YAMLError: It is not valid.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # a number that Python refuses
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML as in YAML 1.2: ``1e-4`` is a number (a text to PyYAML), ``2026-01-31`` a text (a date to it)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that `_Loader` would take for numbers, such as the commit ``7352e10``."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _key_lines(node: yaml.Node, path: Path, at: Location = ()) -> Lines:
    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key, line = (*at, str(key_node.value)), key_node.start_mark.line + 1
            if key_node.tag not in _KEY_TAGS:
                raise ConfigError("a key is a name; put quotes around it", path=path, line=line, key=dotted(key))
            if key in lines:
                raise ConfigError("this key stands twice", path=path, line=line, key=dotted(key))
            lines[key] = line
            lines |= _key_lines(value_node, path, key)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*at, index] = item.start_mark.line + 1
            lines |= _key_lines(item, path, (*at, index))
    return lines


def _apply_override(values: dict[str, Any], override: str) -> Location:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: expected a.b=c, such as training.num_epochs=1")
    try:
        value = parse_yaml(text)
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
    return (*parents, last)


def anchored(key: str, value: Any, folder: Path) -> Any:
    """The value of a dotted key; where the path of a data file is relative, it starts at a folder (``~/``: at home)."""
    is_path = tuple(key.split(".")) in _PATH_KEYS and isinstance(value, str) and "://" not in value
    return str(folder / os.path.expanduser(value)) if is_path else value


def _anchor_path(values: dict[str, Any], keys: tuple[str, str], folder: Path) -> None:
    section = values.get(keys[0])
    if isinstance(section, dict) and keys[1] in section:
        section[keys[1]] = anchored(".".join(keys), section[keys[1]], folder)
