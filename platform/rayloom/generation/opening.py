"""From a path or name to a model with its encoder: artifacts, plain model folders, hub names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rayloom.artifacts import Artifact, open_artifact
from rayloom.config import EngineKind, GenerationConfig, ModelConfig, WeightPrecision
from rayloom.data import Encoder, PromptTemplate
from rayloom.engine import Engine, EngineOptions, EngineService, open_engine
from rayloom.engine.vllm import VllmEngine, open_vllm
from rayloom.errors import ArtifactError, RequestError
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.planning import DEFAULT_NEW_TOKENS, Window
from rayloom.generation.resolving import Addressing, Resolver
from rayloom.generation.transformers_generator import max_positions
from rayloom.models import LoadedModel, load_model, open_model, resolve_source
from rayloom.registry import locate

_Name = TypeVar("_Name", bound=str)

_UNBOUNDED = 1 << 20
"""Prompt length of plain models: what does not fit their positions is refused, never cut."""


@dataclass(frozen=True)
class Opened:
    """A model that is ready to write.

    Attributes:
        name: Artifact name, folder or hub name.
        loaded: Model and tokenizer.
        encoder: Makes prompts.
        generation: Defaults of generation.
        artifact: Where it came from, None for a plain model.
        adapter: PEFT folder of the adapter that answers; None for the model as it is. The engine reads it from
            there, whether the loaded model has it attached or not.
    """

    name: str
    loaded: LoadedModel
    encoder: Encoder
    generation: GenerationConfig
    artifact: Artifact | None = None
    adapter: Path | None = None


def open_path(path_or_name: str | Path) -> Opened:
    """Open an artifact (folder or URI), a registered version (``NAME@STAGE``), a plain model folder, or a hub model.

    Raises:
        RegistryError: There is no such version.
        ArtifactError: No such folder, nothing usable in it, or a damaged artifact.
        ModelError: The model cannot be loaded.
        HubError: The hub is needed and cannot be reached.
    """
    name = locate(str(path_or_name))
    folder = Path(name).expanduser()
    if "://" in name or (folder / "manifest.json").is_file():
        return _open_artifact(name if "://" in name else str(folder))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArtifactError(
                f"{folder}: neither an artifact (manifest.json) nor a model folder (config.json); "
                "name the folder that `rayloom train` printed as its artifact"
            )
        name = str(folder)
    elif isinstance(path_or_name, Path) or _looks_like_path(name):
        raise ArtifactError(f"{folder}: no such folder")
    return open_plain(load_model(resolve_source(ModelConfig(name=name), seed=0)), name=name)


def open_plain(loaded: LoadedModel, *, name: str) -> Opened:
    """A model without an artifact: chat if it has a chat template, else the prompt as it is."""
    seq2seq = loaded.family.seq2seq
    if loaded.tokenizer.chat_template and not seq2seq:
        template = PromptTemplate(
            task="chat", seq2seq=False, chat=True, prompt="{input}", context_prompt="{context}\n\n{input}"
        )
    else:
        template = PromptTemplate(task="language-modeling", seq2seq=seq2seq)
    encoder = Encoder(loaded.tokenizer, template, max_input_length=_UNBOUNDED, max_target_length=DEFAULT_NEW_TOKENS)
    return Opened(name, loaded, encoder, GenerationConfig())


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else the first GPU, else the CPU.

    Raises:
        RequestError: Not a device, or not on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RequestError(f"device {str(device)!r}: expected 'cpu', 'cuda' or 'cuda:1'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {str(device)!r}: this machine has {torch.cuda.device_count()} GPUs")
    return chosen


def pick_precision(precision: str) -> WeightPrecision:
    """A precision by its name.

    Raises:
        RequestError: Not one of them.
    """
    names: tuple[WeightPrecision, ...] = get_args(WeightPrecision)
    return _known("precision", precision, names)


def pick_engine(engine: str) -> EngineKind:
    """An engine by its name.

    Raises:
        RequestError: Not one of them.
    """
    names: tuple[EngineKind, ...] = get_args(EngineKind)
    return _known("engine", engine, names)


def start_engine(
    opened: Opened,
    options: EngineOptions,
    device: torch.device,
    adapters: Mapping[str, Artifact] | None = None,
) -> EngineGenerator:
    """A generator over an engine of the model's own.

    Args:
        opened: The model; for Rayloom's engine on the device.
        options: Of the engine.
        device: Where the engine computes.
        adapters: Further adapters of it that the engine is to know, by name.

    Raises:
        ModelError: The engine cannot serve this model.
    """
    loaded = opened.loaded
    model: Any = loaded.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.eval()
    folders = {} if opened.adapter is None else {opened.name: opened.adapter}
    folders |= {name: artifact.adapter_path for name, artifact in (adapters or {}).items()}
    engine = _vllm(model, base, options, device, folders) if options.kind == "vllm" else _own(base, options, folders)
    seq2seq = loaded.family.seq2seq
    resolver = Resolver(
        loaded.tokenizer,
        base.generation_config,
        Window(seq2seq, max_positions(base.config, seq2seq=seq2seq), opened.encoder.max_target_length),
        vocab_size=base.get_output_embeddings().weight.shape[0],
        start_text=opened.encoder.template.target_prefix,
    )
    addressing = Addressing(adapter=opened.name if opened.adapter is not None else None)
    return EngineGenerator(EngineService(engine), resolver, addressing)


def _own(base: PreTrainedModel, options: EngineOptions, adapters: Mapping[str, Path]) -> Engine:
    engine = open_engine(base, options)
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    return engine


def _vllm(
    model: Any, base: PreTrainedModel, options: EngineOptions, device: torch.device, adapters: Mapping[str, Path]
) -> VllmEngine:
    # PEFT puts its layers into the base: they come off before it is written for vLLM, which reads adapters itself.
    bare = model.unload() if isinstance(model, PeftModel) else base
    return open_vllm(bare, options, device, adapters)


def _open_artifact(path: str) -> Opened:
    artifact = open_artifact(path)
    manifest = artifact.manifest
    loaded = open_model(artifact, merge=False)
    encoder = Encoder(
        loaded.tokenizer,
        PromptTemplate.model_validate(manifest.template),
        max_input_length=manifest.limits.max_input_length,
        max_target_length=manifest.limits.max_target_length,
    )
    adapter = artifact.adapter_path if manifest.kind == "adapter" else None
    return Opened(manifest.name, loaded, encoder, manifest.generation, artifact, adapter)


def _known(what: str, value: str, names: tuple[_Name, ...]) -> _Name:
    for name in names:
        if name == value:
            return name
    raise RequestError(f"{what} {value!r}: expected {', '.join(names)}")


def _looks_like_path(name: str) -> bool:
    """Hub names have one slash at most; ``package:`` names a file inside an installed package."""
    return not name.startswith("package:") and (name.startswith(("/", ".", "~")) or name.count("/") > 1)
