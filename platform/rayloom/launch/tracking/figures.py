"""The names under which every tracker keeps a run's figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayloom.artifacts.storage import files_below, local_path
from rayloom.config import RunConfig
from rayloom.training import EvalRecord, StepRecord

CHEAP_BYTES = 64 * 1024**2
"""Largest artifact whose files a tracker takes; of a larger one it keeps the place."""

_NOT_FIGURES = ("step", "total_steps", "eta_s")


def record_figures(record: StepRecord | EvalRecord) -> dict[str, float]:
    """Such as ``train/loss`` of a step, ``validation/rougeL`` of an evaluation."""
    if isinstance(record, EvalRecord):
        return {f"validation/{name}": value for name, value in record.metrics.items()}
    values = {name: value for name, value in asdict(record).items() if name not in _NOT_FIGURES}
    return {f"train/{name}": float(value) for name, value in values.items() if isinstance(value, (int, float))}


def final_figures(metrics: dict[str, float]) -> dict[str, float]:
    """The figures of the finished run, such as ``final/loss``."""
    return {f"final/{name}": value for name, value in metrics.items()}


def flat_config(config: RunConfig) -> dict[str, str]:
    """The resolved config by dotted key; what is not set is left out."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else str(name), inner)
        elif value is not None:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    add("", config.model_dump(mode="json"))
    return flat


def samples_markdown(record: EvalRecord) -> str:
    """Generated answers beside their references, as a Markdown table."""
    names = list(record.samples[0])
    rows = [names, ["---"] * len(names), *([_cell(sample[name]) for name in names] for sample in record.samples)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cheap_artifact(place: str | None) -> Path | None:
    """The artifact's folder if it is local and small enough to be copied, else None."""
    folder = local_path(place) if place else None
    if folder is None or not folder.is_dir():
        return None
    size = sum((folder / name).stat().st_size for name in files_below(folder))
    return folder if size <= CHEAP_BYTES else None


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
