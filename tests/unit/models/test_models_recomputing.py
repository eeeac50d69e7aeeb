"""Recomputing activations: the same gradients, less to keep, more to compute, and by how much."""

from __future__ import annotations

import pytest
import torch

from rayloom.config import LoraConfig
from rayloom.models import FAMILIES as KINDS
from rayloom.models import attach_lora, recompute_activations
from tests.fakes import FAMILIES, VOCABULARY, tiny_model

WAYS = (False, "selective", True)
IDS = torch.arange(2, 42).reshape(2, 20) % VOCABULARY


def measured(family: str, how, *, lora: bool = False):
    """Gradients, bytes kept for the backward pass, and calls of the blocks' feed-forward layers."""
    model = tiny_model(family)
    blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing") and _is_block(module)]
    if lora:
        torch.manual_seed(0)
        model = attach_lora(model, LoraConfig(r=2), KINDS[family])
    recompute_activations(model, how)
    model.train()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for block in blocks:
        layer = next(module for name, module in block.named_modules() if name.endswith(("mlp", "DenseReluDense")))
        # Not after it: recomputing stops as soon as all that is needed is there.
        layer.register_forward_pre_hook(count)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    num_bytes = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return gradients, num_bytes, calls, len(blocks)


def _is_block(module: torch.nn.Module) -> bool:
    return type(module).__name__ in ("T5Block", "GPTNeoBlock", "LlamaDecoderLayer")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_stay_and_half_is_half(family):
    (none, none_bytes, none_calls, blocks), half, full = (measured(family, how) for how in WAYS)
    for gradients in (half[0], full[0]):
        assert gradients.keys() == none.keys()
        for name, gradient in none.items():
            # T5 adds up what all its blocks do to the relative positions, in another order.
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7)
    assert blocks >= 2
    assert (none_calls, half[2], full[2]) == (blocks, blocks + blocks // 2, 2 * blocks)
    assert full[1] < half[1] < none_bytes
    assert half[1] - full[1] == pytest.approx(none_bytes - half[1], rel=0.5)


def test_adapters_recompute_too():
    (none, *_), half = (measured("llama", how, lora=True) for how in (False, "selective"))
    assert none
    assert all(torch.equal(half[0][name], gradient) for name, gradient in none.items())
    assert half[2] == half[3] + half[3] // 2
