"""From a path or name to a model with its encoder: artifacts, plain model folders, hub names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rayloom.artifacts import Artifact, open_artifact
from rayloom.config import GenerationConfig, ModelConfig
from rayloom.data import Encoder, PromptTemplate
from rayloom.errors import ArtifactError, RequestError
from rayloom.generation.planning import DEFAULT_NEW_TOKENS
from rayloom.models import LoadedModel, load_model, open_model, resolve_source

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
    """

    name: str
    loaded: LoadedModel
    encoder: Encoder
    generation: GenerationConfig
    artifact: Artifact | None = None


def open_path(path_or_name: str | Path, *, dtype: torch.dtype) -> Opened:
    """Open an artifact (folder or URI), a plain model folder, or a hub model.

    Raises:
        ArtifactError: No such folder, nothing usable in it, or a damaged artifact.
        ModelError: The model cannot be loaded.
        HubError: The hub is needed and cannot be reached.
    """
    name = str(path_or_name)
    folder = Path(name).expanduser()
    if "://" in name or (folder / "manifest.json").is_file():
        return _open_artifact(name if "://" in name else str(folder), dtype)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArtifactError(
                f"{folder}: neither an artifact (manifest.json) nor a model folder (config.json); "
                "name the folder that `rayloom train` printed as its artifact"
            )
        name = str(folder)
    elif isinstance(path_or_name, Path) or _looks_like_path(name):
        raise ArtifactError(f"{folder}: no such folder")
    return open_plain(load_model(resolve_source(ModelConfig(name=name), seed=0), dtype=dtype), name=name)


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


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A dtype by torch's or the config's name; float32 where not given.

    Raises:
        RequestError: Not a floating-point type.
    """
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = names.get(dtype, getattr(torch, dtype, None)) if isinstance(dtype, str) else dtype or torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RequestError(f"dtype {dtype!r}: expected {', '.join(names)} or a torch floating-point type")
    return found


def _open_artifact(path: str, dtype: torch.dtype) -> Opened:
    artifact = open_artifact(path)
    manifest = artifact.manifest
    loaded = open_model(artifact, dtype=dtype, merge=False)
    encoder = Encoder(
        loaded.tokenizer,
        PromptTemplate.model_validate(manifest.template),
        max_input_length=manifest.limits.max_input_length,
        max_target_length=manifest.limits.max_target_length,
    )
    return Opened(manifest.name, loaded, encoder, manifest.generation, artifact)


def _looks_like_path(name: str) -> bool:
    """Hub names have one slash at most; ``package:`` names a file inside an installed package."""
    return not name.startswith("package:") and (name.startswith(("/", ".", "~")) or name.count("/") > 1)
