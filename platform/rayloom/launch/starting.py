"""What a run starts from: a model by its name, or a checkpoint of another run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rayloom.config import RunConfig
from rayloom.models import ModelSource, resolve_source
from rayloom.training.continuing import chain_source, find_start

Note = Callable[[str], None]
"""Takes a line for people."""


def settled(config: RunConfig, *, note: Note) -> RunConfig:
    """The config with the very checkpoint in ``model.name`` where that names another run.

    A run's best checkpoint may be another one tomorrow; what a run started from must not change.

    Args:
        config: The run.
        note: Takes a line for people.

    Raises:
        TrainingError: The run or checkpoint that the name leads to cannot be used.
    """
    start = None if config.model.random_init else find_start(config.model.name, note=note)
    if start is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"name": start.name})})


def find_source(config: RunConfig, texts: Callable[[RunConfig], Iterator[str]], *, note: Note) -> ModelSource:
    """The model that a run starts from; a checkpoint of another run becomes a model of its own first.

    Args:
        config: The run.
        texts: Of a run, which the tokenizer of a random initialisation is trained on; called for each pass over them.
        note: Takes a line for people.

    Raises:
        UserError: There is no such model, or the checkpoint cannot be used.
    """

    def first(run: RunConfig) -> ModelSource:
        return resolve_source(run.model, corpus=lambda: texts(run), seed=run.training.seed)

    return chain_source(config, first, note=note)
