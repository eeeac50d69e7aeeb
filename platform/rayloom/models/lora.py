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

from rayloom.artifacts import open_artifact
from rayloom.config import LoraConfig
from rayloom.errors import ModelError
from rayloom.models.families import Family


def attach_lora(model: Any, config: LoraConfig, family: Family) -> Any:
    """Put an adapter into a model, new or to be trained further; only the adapter stays trainable.

    Args:
        model: A transformers model; its layers are replaced in place.
        config: Rank, scale, dropout and targets.
        family: Gives the default targets.

    Returns:
        A ``PeftModel``. With a new adapter its output equals the model's until it is trained.

    Raises:
        ModelError: A target names no linear layer; says which exist. Or `LoraConfig.adapter` does not fit.
    """
    targets = config.target_modules or family.lora_targets
    layers = target_layers(model, targets)
    finished = None if config.adapter is None else _adapter_of(model, config.adapter)
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
        adapted = peft.get_peft_model(model, settings)
    if finished is not None:
        _fill(adapted, finished)
    return adapted


def _adapter_of(model: Any, place: str) -> Path:
    """The PEFT folder that an artifact over this very model holds, or that the place is itself."""
    if "://" not in place and (Path(place).expanduser() / "adapter_config.json").is_file():
        return Path(place).expanduser()
    artifact = open_artifact(place)
    if artifact.manifest.kind != "adapter":
        raise ModelError(f"{place} is the artifact of a full model, not of an adapter: name it in model.name")
    base = artifact.manifest.base
    assert base is not None, "an adapter's manifest names its base"
    if not (_holds(artifact.base_path, model) if base.is_inside else base.name == model.name_or_path):
        known = str(artifact.base_path) if base.is_inside else base.name
        raise ModelError(f"{place}: the adapter was trained over another model than model.name gives: name {known}")
    return artifact.adapter_path


def _holds(folder: Path, model: Any) -> bool:
    """Whether a folder's weights are the model's."""
    from safetensors import safe_open

    own = model.state_dict()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if not all(name in own and weights.get_tensor(name).equal(own[name].cpu()) for name in weights.keys()):  # noqa: SIM118 - no mapping
                return False
    return True


def _fill(adapted: Any, folder: Path) -> None:
    """Overwrite the new adapter's weights by a finished one's, which must be of the very same make."""
    import peft
    from safetensors.torch import load_file

    old, new = peft.PeftConfig.from_pretrained(str(folder)), adapted.peft_config["default"]
    for name in ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        was, wanted = getattr(old, name, None), getattr(new, name)
        if was != wanted:
            remedy = "say the same in lora" if name in LoraConfig.model_fields else "such an adapter cannot go on here"
            raise ModelError(f"{folder}: the adapter has {name} {_shown(was)}, the run {_shown(wanted)}: {remedy}")
    state = load_file(folder / "adapter_model.safetensors")
    try:
        report = peft.set_peft_model_state_dict(adapted, state)
    except RuntimeError as error:
        raise ModelError(f"{folder}: the adapter does not fit the model: {str(error).splitlines()[0]}") from error
    missing = [name for name in report.missing_keys if "lora_" in name]
    if missing or report.unexpected_keys:
        names = ", ".join(sorted([*missing, *report.unexpected_keys])[:3])
        raise ModelError(f"{folder}: the adapter does not fit the model ({names} …)")


def _shown(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, set | list) else str(value)


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
