"""From an artifact to a model."""

from __future__ import annotations

from dataclasses import replace

import torch

from rayloom.artifacts import Artifact
from rayloom.config import ModelConfig
from rayloom.errors import ArtifactError
from rayloom.models.loading import LoadedModel, load_model, tokenizer_in
from rayloom.models.lora import load_adapter, merge_adapter
from rayloom.models.sources import ModelSource, resolve_source


def open_model(artifact: Artifact, *, dtype: torch.dtype = torch.float32, merge: bool = False) -> LoadedModel:
    """Load an artifact's model and tokenizer.

    Args:
        artifact: As `open_artifact` gives it.
        dtype: Type of the weights.
        merge: Add an adapter into its base model's weights: faster, but rounding may change a token.

    Raises:
        ArtifactError: Manifest and model contradict each other.
        ModelError: The model cannot be loaded, or an adapter's base is not here.
    """
    manifest = artifact.manifest
    if manifest.kind == "full":
        loaded = load_model(_source(manifest.name, str(artifact.model_path)), dtype=dtype)
    else:
        loaded = load_model(_base_source(artifact), dtype=dtype)
        model = load_adapter(loaded.model, artifact.adapter_path)
        loaded = replace(
            loaded,
            model=merge_adapter(model) if merge else model,
            tokenizer=tokenizer_in(artifact.adapter_path),
        )
    if loaded.family.seq2seq != manifest.seq2seq:
        raise ArtifactError(f"{artifact.path}: the manifest says seq2seq={manifest.seq2seq}, the model is not")
    return loaded


def _base_source(artifact: Artifact) -> ModelSource:
    base = artifact.manifest.base
    if base is None:
        raise ArtifactError(f"{artifact.path}: the manifest of an adapter must name its base model")
    if base.is_inside:
        return _source(base.name, str(artifact.base_path))
    return resolve_source(ModelConfig(name=base.name, revision=base.revision))


def _source(name: str, folder: str) -> ModelSource:
    return ModelSource(name=name, location=folder, tokenizer_location=folder)
