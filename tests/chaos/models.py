"""Models of both kinds behind one service: some that open in no time, and real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayloom.config import ServingConfig
from rayloom.registry import Registry
from rayloom.serving.replicas import ModelFactory
from tests.integration.conftest import build_artifact
from tests.serving_load import quick_models
from tests.unit.registry.publishing import publish_artifact


def open_either() -> ModelFactory:
    """Opens quick models for artifacts with 'quick' in their place, and engines for others."""
    quick = quick_models()

    def open_model(config: ServingConfig) -> Any:
        from rayloom.serving.replicas import open_text_generator

        return (quick if "quick" in Path(config.artifact).name else open_text_generator)(config)

    return open_model


def config_of_both() -> ServingConfig:
    """Both follow the registry's stage ``candidate``."""
    models = {
        "quick": {"artifact": "quick@candidate", "autoscaling": {"min_replicas": 3, "max_replicas": 3}},
        "engine": {"artifact": "engine@candidate", "autoscaling": {"min_replicas": 2, "max_replicas": 2}},
    }
    values = {"models": models, "num_cpus": 0.1, "request_timeout_s": 120, "follow_stages_s": 0.5}
    return ServingConfig.model_validate(values)


def register_both(registry: Registry, folder: Path) -> dict[str, list[str]]:
    """Two versions of each model, the first of them in the stage; returns where they lie."""
    artifacts = {
        "quick": [publish_artifact(folder, f"quick-{number}") for number in (1, 2)],
        "engine": [str(build_artifact(folder / f"engine-{seed}", "t5", lora=None, seed=seed)) for seed in (1, 2)],
    }
    for name, places in artifacts.items():
        for place in places:
            registry.register(name, place, copy=False)
        registry.nominate(f"{name}@1")
    return artifacts
