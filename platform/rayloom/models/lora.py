"""LoRA (Hu et al., 2021) through PEFT: attach, load, merge."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rayloom.config import LoraConfig
from rayloom.errors import ModelError
from rayloom.models.families import Family


def attach_lora(model: Any, config: LoraConfig, family: Family) -> Any:
    """Put an adapter with random first weights into a model; only the adapter stays trainable.

    Args:
        model: A transformers model; its layers are replaced in place.
        config: Rank, scale, dropout and targets.
        family: Gives the default targets.

    Returns:
        A ``PeftModel``. Its output equals the model's until it is trained.

    Raises:
        ModelError: A target names no linear layer; says which exist.
    """
    targets = config.target_modules or family.lora_targets
    layers = target_layers(model, targets)
    import peft  # seconds to import, and only adapters need it

    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        bias="none",
        task_type="SEQ_2_SEQ_LM" if family.seq2seq else "CAUSAL_LM",
    )
    with _known_warnings():
        return peft.get_peft_model(model, settings)


def target_layers(model: Any, targets: str | tuple[str, ...] | list[str]) -> dict[str, nn.Module]:
    """The linear layers that targets mean, by name. See `attach_lora`."""
    layers = dict(_linear_layers(model))
    if isinstance(targets, str):
        return layers
    chosen = {name: layer for name, layer in layers.items() if any(_matches(name, t) for t in targets)}
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets:
        if not any(_matches(name, target) for name in layers):
            near = difflib.get_close_matches(target, leaves, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ModelError(
                f"lora.target_modules: the model has no linear layer '{target}'{hint}; it has: {', '.join(leaves)}"
            )
    return chosen


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear layer."""
    weight = cast("Tensor", layer.weight)
    rows, columns = weight.shape
    return (int(rows), int(columns)) if isinstance(layer, Conv1D) else (int(columns), int(rows))


def load_adapter(model: Any, adapter_path: Path) -> Any:
    """Put a saved adapter over its base model, for use.

    Raises:
        ModelError: No adapter, one that is not safetensors, or one that does not fit the model.
    """
    if not (adapter_path / "adapter_model.safetensors").is_file():
        raise ModelError(f"{adapter_path} holds no adapter_model.safetensors")
    import peft

    try:
        with _known_warnings():
            return peft.PeftModel.from_pretrained(model, str(adapter_path), is_trainable=False).eval()
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{adapter_path}: the adapter does not fit its base model: {first_line}") from error


def merge_adapter(peft_model: Any) -> Any:
    """The base model with the adapter added into its weights: faster, equal up to rounding.

    Raises:
        ModelError: The adapter holds numbers that are not finite.
    """
    try:
        return peft_model.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:
        raise ModelError(f"the adapter cannot be merged: {error}") from error


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for an attribute by its old name; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def is_adapted(model: Any) -> bool:
    """Whether a model is a ``PeftModel``."""
    return hasattr(model, "peft_config")


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
