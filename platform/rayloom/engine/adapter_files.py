"""LoRA adapters (Hu et al., 2021) as PEFT writes them into a folder, an artifact's ``adapter/`` among them.

Shape letters: R rank, I input width of a layer, O output width.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rayloom.errors import ModelError

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"

# What an adapter's config may say without changing its forward pass, once its tensors and its scale are known.
# fan_in_fan_out is among them: GPT-2's Conv1D turns the base weight around, never the adapter's.
_HARMLESS = frozenset(
    # fmt: off
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    )
    # fmt: on
)
# Others (PiSSA, OLoRA, CorDA, LoftQ) take something out of the base's weights when the adapter is attached.
_INITS_THAT_LEAVE_THE_BASE = frozenset(("gaussian", "eva", "orthogonal"))

_TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class LoraPair:
    """One layer's low-rank change: y += (x downᵀ) up.

    Attributes:
        down_RI: PEFT's ``lora_A``, float32.
        up_RO: PEFT's ``lora_B`` turned around, times the scale, float32.
    """

    down_RI: torch.Tensor
    up_RO: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies in its folder.

    Attributes:
        pairs: By module path in the transformers model.
        fingerprint: SHA-256 of its files: equal adapters have equal ones.
    """

    pairs: Mapping[str, LoraPair]
    fingerprint: str

    @property
    def rank(self) -> int:
        """The greatest of its layers' ranks."""
        return max(len(pair.down_RI) for pair in self.pairs.values())


def read_adapter(folder: Path, layers: Mapping[str, tuple[int, int]]) -> Adapter:
    """Read a PEFT folder.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        layers: (input width, output width) of the base's layers that can be adapted, by module path.

    Raises:
        ModelError: No such adapter, a damaged one, one that needs more than plain LoRA, or one of another base.
    """
    settings, written = _read(folder, _CONFIG_FILE), _read(folder, _WEIGHTS_FILE)
    try:
        config = json.loads(settings)
        tensors = safetensors.torch.load(written)
    except (ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: {_CONFIG_FILE} holds no settings")
    try:
        _refuse_variants(config)
        pairs = {
            module: _pair(module, sides, config, layers) for module, sides in sorted(_sides_by_module(tensors).items())
        }
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return Adapter(pairs, hashlib.sha256(settings + b"\0" + written).hexdigest())


def adaptable_layers(model: Any) -> dict[str, tuple[int, int]]:
    """(input width, output width) of a transformers model's linear layers by path, its output head left out.

    Args:
        model: May carry PEFT's wrappers: then it is what they wrap.
    """
    from rayloom.models.lora import layer_shape, target_layers  # transformers takes seconds to import

    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    return {
        name.removesuffix(".base_layer"): layer_shape(layer)
        for name, layer in target_layers(model, "all-linear").items()
        if layer is not head and ".lora_" not in name
    }


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder} holds no adapter: {name} cannot be read ({error.strerror})") from None


def _refuse_variants(config: Mapping[str, Any]) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise ModelError(f"the adapter is of kind '{kind}'; the engine adds LoRA only")
    for key, value in config.items():
        if key not in _HARMLESS and value and (key, value) != ("bias", "none"):
            raise ModelError(f"the adapter has {key}={value!r}, which the engine cannot add to a batch: {_MEND}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init not in _INITS_THAT_LEAVE_THE_BASE:
        raise ModelError(
            f"the adapter has init_lora_weights='{init}', which may change the base model's weights: "
            "save it with PEFT's path_initial_model_for_weight_conversion, or serve it merged"
        )


_MEND = "serve this model merged, or train it with plain LoRA"


def _sides_by_module(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise ModelError(f"the adapter holds '{name}', which the engine cannot add to a batch: {_MEND}")
        modules.setdefault(match["module"], {})[match["side"]] = tensor
    if not modules:
        raise ModelError("the adapter holds no weights")
    return modules


def _pair(
    module: str, sides: Mapping[str, torch.Tensor], config: Mapping[str, Any], layers: Mapping[str, tuple[int, int]]
) -> LoraPair:
    if module not in layers:
        raise ModelError(f"the adapter changes '{module}', which is no layer of this model that can be adapted")
    if len(sides) < 2:
        raise ModelError(f"the adapter is damaged: '{module}' has lora_{next(iter(sides))} only")
    down_RI, up_OR = sides["A"].float(), sides["B"].float()
    rank = len(down_RI)
    wanted = [(rank, layers[module][0]), (layers[module][1], rank)]
    if [tuple(down_RI.shape), tuple(up_OR.shape)] != wanted or rank == 0:
        raise ModelError(
            f"the adapter belongs to another model: '{module}' has shapes "
            f"{tuple(down_RI.shape)} and {tuple(up_OR.shape)} instead of {wanted[0]} and {wanted[1]}"
        )
    if not (down_RI.isfinite().all() and up_OR.isfinite().all()):
        raise ModelError(f"the adapter holds numbers that are not finite, in '{module}'")
    return LoraPair(down_RI.contiguous(), (up_OR * _scale(module, rank, config)).T.contiguous())


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    try:
        said = int(_for_module(module, config.get("rank_pattern"), config["r"]))
        alpha = float(_for_module(module, config.get("alpha_pattern"), config["lora_alpha"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{_CONFIG_FILE} says no rank or scale for '{module}' ({error!r})") from None
    if said != rank:
        raise ModelError(f"'{module}' has rank {rank}, but {_CONFIG_FILE} says {said}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _for_module(module: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    """PEFT's rule: the first pattern that the path ends with, at a dot, counts."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return otherwise
