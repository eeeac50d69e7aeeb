"""fp16 without T5's overflow: the layers that leave half precision's range compute in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn


def keep_fragile_in_fp32(model: Any) -> int:
    """Let the layers that their architecture calls fragile (T5: ``wo``) compute in float32, under autocast too.

    T5's feed-forward outputs grow beyond 65504, half precision's largest number, and the loss becomes NaN. The rest
    of the model stays in half precision. Weights keep their type: DeepSpeed may hold them in half precision, which is
    wide enough for them.

    Args:
        model: A transformers or PEFT model.

    Returns:
        Number of layers changed; 0 where an architecture names none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_keep_in_fp32_modules", None) or ())
    layers = [
        layer for name, layer in model.named_modules() if names & set(name.split(".")) and isinstance(layer, nn.Linear)
    ]
    for layer in layers:
        _widen(layer)
    return len(layers)


def _widen(layer: nn.Linear) -> None:
    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return F.linear(hidden.float(), layer.weight.float(), bias)

    # Hooks (such as ZeRO-3's gathering) stay: they are around forward.
    layer.forward = forward  # type: ignore[method-assign,assignment]
