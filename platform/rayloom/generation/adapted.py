"""Further LoRA adapters of a model that is open: they share its weights, its engine and its batch."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rayloom.artifacts import BASE_FOLDER, Artifact, open_artifact
from rayloom.artifacts.storage import file_entry
from rayloom.config import ModelConfig
from rayloom.data import Encoder, PromptTemplate
from rayloom.errors import ArtifactError
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.opening import Opened
from rayloom.generation.resolving import Addressing
from rayloom.models import resolve_source
from rayloom.models.loading import tokenizer_in
from rayloom.registry import locate

_WEIGHTS = ".safetensors"
_tokenizers: weakref.WeakValueDictionary[frozenset[tuple[str, str]], PreTrainedTokenizerBase]
_tokenizers = weakref.WeakValueDictionary()


def open_adapters(opened: Opened, places: Mapping[str, str]) -> dict[str, Artifact]:
    """Artifacts of adapters, each proven to belong to a model.

    Args:
        opened: The model.
        places: Folder, URI or registered version of each, by the name that it is to have.

    Raises:
        RegistryError: There is no such version.
        ArtifactError: No artifact, a damaged one, one that is no adapter, or one of another model.
    """
    found = {name: open_artifact(locate(place)) for name, place in places.items()}
    for name, artifact in found.items():
        if opened.adapter is not None and name == opened.name:
            raise ArtifactError(f"the adapter '{name}' has the name of the model itself: call it something else")
        _check_base(opened, artifact)
    return found


def encoder_of(artifact: Artifact) -> Encoder:
    """Makes prompts as the adapter was trained with: each has a template and limits of its own."""
    manifest = artifact.manifest
    return Encoder(
        _tokenizer(artifact),
        PromptTemplate.model_validate(manifest.template),
        max_input_length=manifest.limits.max_input_length,
        max_target_length=manifest.limits.max_target_length,
    )


def _tokenizer(artifact: Artifact) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer: one object for all adapters that have the same, for it may take tens of megabytes."""
    own = ("adapter/adapter_config.json", f"adapter/adapter_model{_WEIGHTS}")
    files = artifact.manifest.files.items()
    key = frozenset((name, entry.sha256) for name, entry in files if name.startswith("adapter/") and name not in own)
    found = _tokenizers.get(key)
    if found is None:
        found = _tokenizers[key] = tokenizer_in(artifact.adapter_path)
    return found


def generator_of(base: EngineGenerator, name: str, encoder: Encoder) -> EngineGenerator:
    """Writes with an adapter that the engine has under this name."""
    resolver = base.resolver
    window = replace(resolver.window, default_new_tokens=encoder.max_target_length)
    own = replace(resolver, tokenizer=encoder.tokenizer, window=window, start_text=encoder.template.target_prefix)
    return EngineGenerator(base.service, own, Addressing(adapter=name))


def _check_base(opened: Opened, artifact: Artifact) -> None:
    manifest = artifact.manifest
    if manifest.kind != "adapter" or manifest.base is None:
        raise ArtifactError(f"{artifact.path} ({manifest.name}) is no adapter: serve it as a model of its own")
    mine = opened.artifact.manifest.base if opened.artifact else None
    if manifest.base == mine and not manifest.base.is_inside:
        return
    if _weights_under(artifact) != _weights_of(opened):
        raise ArtifactError(
            f"{artifact.path} ({manifest.name}) is an adapter of another model ('{manifest.base.name}') than "
            f"'{opened.name}': serve it beside the model that it was trained on"
        )


def _weights_of(opened: Opened) -> frozenset[str]:
    """Hashes of the weights that an adapter would change."""
    artifact = opened.artifact
    if artifact is None:
        return _weights_named(opened.name)
    return _weights_in(artifact, "model") if artifact.manifest.kind == "full" else _weights_under(artifact)


def _weights_under(artifact: Artifact) -> frozenset[str]:
    """Hashes of the weights that an adapter was trained on."""
    base = artifact.manifest.base
    if base is None or base.is_inside:
        return _weights_in(artifact, BASE_FOLDER)
    return _weights_named(base.name, base.revision)


def _weights_in(artifact: Artifact, folder: str) -> frozenset[str]:
    files = artifact.manifest.files.items()
    return frozenset(entry.sha256 for name, entry in files if name.startswith(f"{folder}/") and name.endswith(_WEIGHTS))


def _weights_named(name: str, revision: str | None = None) -> frozenset[str]:
    folder: Path = resolve_source(ModelConfig(name=name, revision=revision)).model_folder()
    return frozenset(file_entry(path).sha256 for path in folder.glob(f"*{_WEIGHTS}"))
