"""Trained weights in and out of a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayloom.errors import ModelError
from rayloom.models.lora import is_adapted
from rayloom.models.quiet import no_progress_bars
from rayloom.models.sources import ModelSource

_BASE_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy trained weights into a model that was built the same way.

    Args:
        model: The model; of what is trainable, everything is overwritten.
        state: Tensors by name: exactly `trainable_parameters`, or other names of tied ones beside them.

    Raises:
        ModelError: A name is missing or unknown, or a shape differs.
    """
    wanted = trainable_parameters(model)
    aliases = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - aliases)
    if missing or unknown:
        raise ModelError(
            "these weights belong to another model: "
            + "; ".join(
                f"{what}: {', '.join(names[:3])} ({len(names)} in all)"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if state[name].shape != parameter.shape:
                raise ModelError(f"'{name}' has shape {tuple(state[name].shape)} instead of {tuple(parameter.shape)}")
            parameter.copy_(state[name])


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model so that stock transformers (or PEFT) loads the very same numbers.

    Args:
        model: A transformers model, or a ``PeftModel``, of which only the adapter is saved.
        tokenizer: Its tokenizer, saved beside it.
        folder: Made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        if is_adapted(model):
            # "auto" would ask the hub whether the base model's vocabulary has changed.
            model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # the artifact has a card of its own
            _sort_names(folder / "adapter_config.json")
        else:
            model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _sort_names(config: Path) -> None:
    """PEFT writes sets of modules in an order that differs from process to process: the same run, the same file."""
    values = json.loads(config.read_text(encoding="utf-8"))
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(values.get(key), list):
            values[key] = sorted(values[key])
    config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def copy_base(source: ModelSource, folder: Path) -> None:
    """Copy what is needed of a base model into an adapter's artifact: no pickles, no leftovers.

    Args:
        source: A model that is not portable.
        folder: New folder, ``base`` in the artifact.
    """
    folder.mkdir(parents=True)
    for path in sorted(source.model_folder().iterdir()):
        if path.is_file() and path.suffix in _BASE_FILES:
            shutil.copyfile(path, folder / path.name)
