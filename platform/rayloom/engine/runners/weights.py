"""From a transformers model's parameters to the engine's fused products.

Shape letters: I input features, O output features, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rayloom.engine.linear import Precision, in_place, make_linear
from rayloom.engine.runners.base import Projection

_LINE_BYTES = 64


@dataclass(frozen=True)
class Packing:
    """How the weights of products are held.

    Attributes:
        precision: Of the weights.
        peaks: Largest size ``(I,)`` of each input feature by the layer's path, where it is known. Only int8 asks.
    """

    precision: Precision
    peaks: Mapping[str, Tensor] = field(default_factory=dict)


def bare(module: nn.Module) -> nn.Module:
    """The layer itself where PEFT has wrapped it."""
    return cast("nn.Module", getattr(module, "base_layer", module))


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The base model's own results, where PEFT has wrapped layers; afterwards they are as before."""
    wrapped: list[Any] = [
        module for module in model.modules() if hasattr(module, "base_layer") and hasattr(module, "enable_adapters")
    ]
    active = [module for module in wrapped if not module.disable_adapters]
    for module in active:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in active:
            module.enable_adapters(True)


def project(model: PreTrainedModel, names: Sequence[str], packing: Packing) -> Projection:
    """Linear layers that read the same input, as one product.

    Where products use float32 weights in place (`in_place`), the model's own parameters become views into the fused
    weights: nothing is held twice, and the model still works, with gradients and in-place updates too. Elsewhere
    products have weights of their own, and the model is as it was.

    Args:
        model: Holds the layers.
        names: Their paths, in the order in which their outputs shall lie.
        packing: Of the product.
    """
    layers = [bare(model.get_submodule(name)) for name in names]
    weight_OI = _fuse([_weight(layer) for layer in layers])
    biases = [cast("Tensor | None", getattr(layer, "bias", None)) for layer in layers]
    widths = [int(_weight(layer).shape[0]) for layer in layers]
    bias_O = _fuse_biases(biases, widths)
    if in_place(weight_OI, packing.precision) and weight_OI.dtype is torch.float32:
        weight_OI = _aligned(weight_OI)
        _share(layers, weight_OI, widths)
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    parts = tuple((name, end - width, end) for name, width, end in zip(names, widths, ends, strict=True))
    return Projection(
        make_linear(weight_OI, bias_O, precision=packing.precision, peaks_I=packing.peaks.get(names[0])), parts
    )


def project_head(model: PreTrainedModel, packing: Packing) -> Projection:
    """The product that gives logits, tied to the embeddings or not."""
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return project(model, [name], packing)


def embeddings(module: nn.Module) -> Tensor:
    """The table of an embedding layer, where it lies."""
    return cast("Tensor", bare(module).weight).detach()


def parameter(model: PreTrainedModel, name: str) -> Tensor:
    """A small parameter (of a norm), in float32."""
    weight: Tensor = model.get_parameter(name)
    return weight.detach().float()


def _weight(layer: nn.Module) -> Tensor:
    weight = cast("Tensor", layer.weight).detach()
    return weight.t() if isinstance(layer, Conv1D) else weight


def _fuse(weights: list[Tensor]) -> Tensor:
    """Side by side, rows contiguous: kernels read weights row by row."""
    return weights[0].contiguous() if len(weights) == 1 else torch.cat(weights)


def _aligned(weight_OI: Tensor) -> Tensor:
    """From the start of a cache line on: a tensor of a file begins anywhere, its vectors come out of two lines each."""
    return weight_OI.clone() if weight_OI.is_cpu and weight_OI.data_ptr() % _LINE_BYTES else weight_OI


def _fuse_biases(biases: list[Tensor | None], widths: list[int]) -> Tensor | None:
    known = [bias for bias in biases if bias is not None]
    if not known:
        return None
    filled = [
        known[0].new_zeros(width) if bias is None else bias.detach() for bias, width in zip(biases, widths, strict=True)
    ]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


def _share(layers: list[nn.Module], weight_OI: Tensor, widths: list[int]) -> None:
    for layer, rows_OI in zip(layers, torch.split(weight_OI, widths), strict=True):
        owned = cast("nn.Parameter", layer.weight)
        owned.data = rows_OI.t() if isinstance(layer, Conv1D) else rows_OI
