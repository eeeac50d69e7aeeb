"""Models: the table of families, where they come from, loading, LoRA, saving, sizing."""

from rayloom.models.families import FAMILIES, Family, family_of
from rayloom.models.loading import (
    LoadedModel,
    check_generation_type,
    check_task,
    load_config,
    load_family,
    load_model,
    load_tokenizer,
)
from rayloom.models.lora import attach_lora, load_adapter, merge_adapter
from rayloom.models.opening import open_model
from rayloom.models.recomputing import recompute_activations
from rayloom.models.sources import ModelSource, resolve_source
from rayloom.models.weights import copy_base, load_trained_weights, save_model, trainable_parameters

__all__ = [
    "FAMILIES",
    "Family",
    "LoadedModel",
    "ModelSource",
    "attach_lora",
    "check_generation_type",
    "check_task",
    "copy_base",
    "family_of",
    "load_adapter",
    "load_config",
    "load_family",
    "load_model",
    "load_tokenizer",
    "load_trained_weights",
    "merge_adapter",
    "open_model",
    "recompute_activations",
    "resolve_source",
    "save_model",
    "trainable_parameters",
]
