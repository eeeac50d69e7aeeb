"""Frozen weights under autocast: cast once instead of at every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn


def cast_frozen_once(model: nn.Module, dtype: torch.dtype) -> int:
    """Let frozen linear layers keep a copy of their weights in the type that autocast gives them.

    Autocast remembers the copies of trained weights for a step, but makes those of frozen ones anew each time: with
    LoRA that is the whole model, every step. Results stay the same to the bit. Outside autocast the layers compute
    with their own weights, as before.

    Args:
        model: A model with its adapter; weights that are frozen now must stay as they are.
        dtype: Autocast's.

    Returns:
        Number of layers changed.
    """
    frozen = [layer for layer in model.modules() if type(layer) is nn.Linear and _is_frozen(layer)]
    for layer in frozen:
        _keep_copy(layer, dtype)
    return len(frozen)


def _is_frozen(layer: nn.Linear) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters())


def _keep_copy(layer: nn.Linear, dtype: torch.dtype) -> None:
    own, weight = layer.forward, layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def forward(hidden: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(hidden.device.type):
            return own(hidden)
        return F.linear(hidden, weight, bias)

    layer.forward = forward  # type: ignore[method-assign,assignment]
