"""Writes docs/config.md from the config classes (`make docs`); a contract test compares the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayloom.config import EvaluateJob, ExperimentConfig, GateConfig, RunConfig, ServingConfig, SweepConfig

PAGE = Path(__file__).parent / "config.md"
_INTRO = """\
# Configuration

Made from `platform/rayloom/config` by `make docs`: change the classes, not this page.

A config states only what differs from the defaults. Unknown and contradictory keys are refused, with the
line, the key and the nearest valid key. Data files are relative to the config's folder. One setting can be
changed for one run: `rayloom train config.yaml --set training.num_epochs=1`.
"""
_PARTS = (
    ("Training run: `config.yaml`, `jobs/finetune/*.yaml`", RunConfig),
    ("Evaluation job: `jobs/evaluate/*.yaml`", EvaluateJob),
    ("Sweep: `jobs/sweep/*.yaml`", SweepConfig),
    ("Experiment: `jobs/experiments/*.yaml`", ExperimentConfig),
    ("Gate of a model: the file of `rayloom models gate NAME FILE`", GateConfig),
    ("Served model: `args` of an application in `serve_configs/*.yaml`", ServingConfig),
)


def page() -> str:
    """The whole page."""
    text, shown = [_INTRO], set[str]()
    for title, kind in _PARTS:
        schema = kind.model_json_schema()
        text.append(f"## {title}\n")
        text += _sections(schema, schema, "", shown)
    return "\n".join(text).rstrip() + "\n"


def _sections(schema: dict[str, Any], section: dict[str, Any], path: str, shown: set[str]) -> list[str]:
    """The tables of a section and of the sections in it, each once on the page."""
    own, inner = [], []
    for name, field in section["properties"].items():
        reference = _section_of(field)
        if reference is None:
            required = name in section.get("required", ())
            own.append(f"| `{name}` | {_type(field)} | {_default(field, required)} | {_meaning(field)} |")
            continue
        key = f"{path}{name}" + (".NAME" if "additionalProperties" in field else "")
        if reference in shown:
            inner.append(f"### `{key}`\n\nAs `{name}` above.\n")
            continue
        shown.add(reference)
        target = schema["$defs"][reference]
        optional = "" if "anyOf" not in field else " Left out by default."
        inner.append(f"### `{key}`\n\n{_line(target['description'])}{optional}\n")
        inner += _sections(schema, target, f"{key}.", shown)
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *own, ""]
    return [*(table if own else []), *inner]


def _section_of(field: dict[str, Any]) -> str | None:
    of_each = field.get("additionalProperties")
    choices = field.get("anyOf") or field.get("allOf") or [of_each if isinstance(of_each, dict) else field]
    return next((choice["$ref"].rsplit("/", 1)[-1] for choice in choices if "$ref" in choice), None)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "prefixItems" in field:
        return f"[{', '.join(_type(item) for item in field['prefixItems'])}]"
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    kind = field.get("type", "value")
    name = {"string": "text", "object": "mapping", "boolean": "true / false"}.get(kind, kind)
    return " ".join([name, *_bounds(field)])


def _bounds(field: dict[str, Any]) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "*required*"
    value = field.get("default")
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _meaning(field: dict[str, Any]) -> str:
    return _line(field.get("description", ""))


def _line(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
