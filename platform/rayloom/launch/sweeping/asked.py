"""What a sweep was asked for, kept in its folder: the same command goes on with it, another is refused."""

from __future__ import annotations

from typing import Any

import yaml

from rayloom.config import RunConfig, Sweep, SweepConfig, dump_yaml, validate
from rayloom.errors import ConfigError
from rayloom.launch.tracking.folder import RunFolder

ASKED, BASE = "sweep.yaml", "base.yaml"
_SAME = ("space", "search", "start_with", "scheduler", "metric", "mode", "seed")
_SAME_IN_BASE = ("model", "dataset", "training", "lora", "generation", "evaluation")


def keep_asked(sweep: Sweep, folder: RunFolder) -> None:
    """Write the sweep's config and the training config that its trials are made of."""
    folder.write(ASKED, dump_yaml(sweep.config))
    folder.write(BASE, dump_yaml(sweep.base))


def check_same(sweep: Sweep, folder: RunFolder) -> None:
    """Refuse to go on with a sweep of other trials. More trials, or more at a time, are no other sweep.

    Raises:
        ConfigError: Names what differs.
    """
    before = read_asked(folder)
    if before is None:
        return
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(before.config, name), getattr(sweep.config, name)) for name in _SAME
    ]
    pairs += [
        (f"{name} of the training config", getattr(before.base, name), getattr(sweep.base, name))
        for name in _SAME_IN_BASE
    ]
    differing = [name for name, old, new in pairs if old != new]
    if differing:
        raise ConfigError(
            f"the sweep in {folder.path} was begun with another {' and '.join(differing)}: go on with the same, or "
            "give this one another output.name"
        )


def read_asked(folder: RunFolder) -> Sweep | None:
    """The sweep of a folder; None where none was begun.

    Raises:
        ConfigError: What is kept there is damaged.
    """
    asked, base = folder.read(ASKED), folder.read(BASE)
    if asked is None or base is None:
        return None
    try:
        config = validate(SweepConfig, yaml.safe_load(asked))
        return Sweep(config, validate(RunConfig, yaml.safe_load(base)), folder.path.rstrip("/").rsplit("/", 1)[-1])
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{folder.path}/{ASKED} or {BASE} is damaged: {error}") from None
