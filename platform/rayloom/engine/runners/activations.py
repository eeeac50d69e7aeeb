"""Activation functions by their names in transformers' configurations.

Shape letters: T tokens of a step, I features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from rayloom.engine import kernels

Activation = Callable[[torch.Tensor], torch.Tensor]

_PLAIN: dict[str, Activation] = {
    "gelu_new": kernels.gelu_new,
    "gelu_pytorch_tanh": kernels.gelu_new,
    "gelu": functional.gelu,
    "relu": torch.relu_,
    "silu": functional.silu,
    "swish": functional.silu,
}
_GATED: dict[str, Activation] = {
    "silu": kernels.silu_mul,
    "swish": kernels.silu_mul,
    "gelu_new": kernels.gelu_new_mul,
    "gelu_pytorch_tanh": kernels.gelu_new_mul,
}


def plain(name: str) -> Activation:
    """The function of a contiguous tensor; it may work in place."""
    return _PLAIN.get(name) or _module(name)


def gated(name: str) -> Activation:
    """act(first half of the features) * second half: contiguous ``(T, 2 I)`` to a new ``(T, I)``."""
    if name in _GATED:
        return _GATED[name]
    act = _module(name)

    def multiply(gate_up_TI: torch.Tensor) -> torch.Tensor:
        gate_TI, up_TI = gate_up_TI.chunk(2, dim=-1)
        return act(gate_TI) * up_TI

    return multiply


def _module(name: str) -> Activation:
    function: Any = ACT2FN[name]
    return lambda x_TI: function(x_TI)
