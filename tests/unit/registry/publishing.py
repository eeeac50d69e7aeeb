"""Artifacts without a model: what the registry sees of them is real, their weights are a few bytes."""

from __future__ import annotations

from pathlib import Path

import yaml

from rayloom.artifacts import Limits, Manifest, publish


def publish_artifact(
    folder: Path, name: str = "mill", *, config: dict[str, object] | None = None, **changes: object
) -> str:
    build = folder / f"{name}-build"
    (build / "model").mkdir(parents=True)
    (build / "config.yaml").write_text(
        yaml.safe_dump(config or {"model": {"name": "t5-small"}, "training": {"seed": 1}})
    )
    (build / "model" / "config.json").write_text("{}")
    (build / "model" / "model.safetensors").write_bytes(name.encode() * 10)
    values: dict[str, object] = {
        "name": name,
        "kind": "full",
        "family": "t5",
        "seq2seq": True,
        "template": {"task": "question-answering"},
        "limits": Limits(max_input_length=64, max_target_length=16),
        "data_hash": "d" * 64,
        "config_hash": "c" * 64,
        "code_version": "0.1.0+g0123456789abcdef",
        "created": "2026-01-01T00:00:00+00:00",
        "metrics": {"loss": 1.25, "perplexity": float("inf")},
    }
    return publish(build, str(folder / name), Manifest.model_validate(values | changes))
