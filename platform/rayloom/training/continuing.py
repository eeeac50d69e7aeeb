"""New runs that start from a checkpoint of another: what the checkpoint is of, and a model folder made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rayloom.artifacts import cache_root, publish_folder
from rayloom.artifacts.hub import hub_place
from rayloom.config import RunConfig, validate
from rayloom.errors import ConfigError, TrainingError
from rayloom.models import (
    ModelSource,
    attach_lora,
    load_model,
    load_trained_weights,
    merge_adapter,
    save_model,
)
from rayloom.models.sources import find_folder
from rayloom.training.checkpoint import WEIGHTS, load_weights
from rayloom.training.commits import COMMIT, Commit, identity_of, is_folder_name
from rayloom.training.storage import Storage
from rayloom.training.store import CheckpointStore

_CONFIG, _CHECKPOINTS = "config.yaml", "checkpoints"
_OTHERS = ("config.json", "manifest.json", "adapter_config.json")
"""Files of models, artifacts and adapters, which are no runs."""
_VERSION = 1
"""Grows when the same checkpoint should give another folder."""


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run can start from, whose files are as they were written.

    Attributes:
        place: Folder or URI of the run that saved it.
        config: That run's config.
        commit: The checkpoint.
    """

    place: str
    config: RunConfig
    commit: Commit

    @property
    def name(self) -> str:
        """The checkpoint's place: what ``model.name`` can say."""
        return f"{self.place}/{_CHECKPOINTS}/{self.commit.folder}"


def find_start(name: str, *, note: Callable[[str], None]) -> Start | None:
    """The checkpoint that a ``model.name`` leads to: itself, or the best one of a run (the last without a score).

    Args:
        name: What the config says.
        note: Takes a line for people, about damaged checkpoints that are passed over.

    Returns:
        None where the name is neither a run nor a checkpoint of one.

    Raises:
        TrainingError: It is one, but is damaged, foreign, or was never finished.
    """
    found = _places(name)
    if found is None:
        return None
    place, folder = found
    config = _config_of(place)
    checkpoints = Storage(f"{place}/{_CHECKPOINTS}")
    store = CheckpointStore(checkpoints.place, identity_of(config, _data_of(checkpoints, folder)), note=note)
    commit = store.best() if folder is None else store.named(folder)
    if commit is None:
        raise TrainingError(f"{name}: this run has saved no checkpoint yet, so nothing can start from it")
    return Start(place, config, commit)


def chain_source(
    config: RunConfig, first: Callable[[RunConfig], ModelSource], *, note: Callable[[str], None]
) -> ModelSource:
    """The model that a run starts from, through the runs that it goes on from.

    Args:
        config: The run.
        first: The source of a run that starts from a model or from chance.
        note: Takes a line for people.

    Raises:
        UserError: There is no such model, or a checkpoint cannot be used.
    """
    start = None if config.model.random_init else find_start(config.model.name, note=note)
    if start is None:
        return first(config)
    note(f"starting from step {start.commit.step} of {start.place}")
    return start_source(start, chain_source(start.config, first, note=note), tokenizer=config.model.tokenizer)


def start_source(start: Start, base: ModelSource, *, tokenizer: str | None = None) -> ModelSource:
    """A model of its own with a checkpoint's weights, made once; an adapter is merged into its base.

    Args:
        start: See `find_start`.
        base: What that run started from: the architecture, the tokenizer and, with LoRA, the frozen weights.
        tokenizer: Another tokenizer's name, as ``model.tokenizer`` has it.

    Raises:
        ModelError: The weights do not fit the model.
        TrainingError: A file was damaged on its way here.
    """
    store = CheckpointStore(f"{start.place}/{_CHECKPOINTS}", start.commit.identity, note=lambda _: None)

    def build(folder: Path) -> None:
        loaded = load_model(base)
        model: Any = loaded.model
        if start.config.lora is not None:
            # Its first weights do not matter, and the adapter that it may have gone on from may be gone.
            model = attach_lora(model, start.config.lora.model_copy(update={"adapter": None}), loaded.family)
        with store.opened(start.commit) as place:
            load_trained_weights(model, load_weights(place))
        save_model(merge_adapter(model) if start.config.lora is not None else model, loaded.tokenizer, folder)

    weights = start.commit.files[WEIGHTS].sha256
    digest = hashlib.sha256(repr((weights, start.commit.identity, base.name)).encode()).hexdigest()
    folder = str(publish_folder(cache_root() / "models" / f"checkpoint-{digest[:24]}-v{_VERSION}", build))
    own = ModelSource(name=start.name, location=folder, tokenizer_location=folder, materialised=True)
    if tokenizer is None:
        return own
    return replace(own, tokenizer_location=str(find_folder(tokenizer)), tokenizer_name=tokenizer)


def _places(name: str) -> tuple[str, str | None] | None:
    """The run's place and the checkpoint's folder; None for a name that is something else."""
    if hub_place(name) is not None:
        return None  # there are artifacts only
    if "://" not in name:
        path = Path(name).expanduser()
        if not path.is_dir() or any((path / other).is_file() for other in _OTHERS):
            return None
        name = str(path.resolve())
    above, _, last = name.rstrip("/").rpartition("/")
    run, _, middle = above.rpartition("/")
    if is_folder_name(last) and middle == _CHECKPOINTS:
        return run, last
    if last == _CHECKPOINTS and Storage(above).read(_CONFIG) is not None:
        return above, None
    storage = Storage(name)
    if is_folder_name(last) or storage.read(COMMIT) is not None:
        raise TrainingError(
            f"{name}: a checkpoint alone does not say what its model is: put it back into its run's folder, under the "
            f"name that it had (<run>/{_CHECKPOINTS}/step-…), and name that"
        )
    is_run = storage.read(_CONFIG) is not None and all(storage.read(other) is None for other in _OTHERS)
    return (name.rstrip("/"), None) if is_run else None


def _config_of(place: str) -> RunConfig:
    content = Storage(place).read(_CONFIG)
    if content is None:
        raise TrainingError(f"{place} holds no {_CONFIG}: it is no run's folder, so nobody knows what its model is")
    try:
        return validate(RunConfig, yaml.safe_load(content), path=Path(place) / _CONFIG)
    except (yaml.YAMLError, ConfigError) as error:
        raise TrainingError(f"{place}/{_CONFIG} is damaged, so nobody knows what the run's model is: {error}") from None


def _data_of(checkpoints: Storage, folder: str | None) -> str:
    """Hash of the run's rows, as its checkpoints tell it: the rows themselves may be gone."""
    names = [folder] if folder is not None else [n for n in reversed(checkpoints.folders()) if is_folder_name(n)]
    for name in names:
        content = checkpoints.read(f"{name}/{COMMIT}")
        try:
            return Commit.parse(content or b"").identity.get("data", "")
        except ValueError:
            continue  # the store says what is wrong with it
    return ""
