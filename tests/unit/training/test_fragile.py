from __future__ import annotations

import pytest
import torch

from rayloom.config import LoraConfig
from rayloom.models import attach_lora
from rayloom.models.families import family_of
from rayloom.training.fragile import keep_fragile_in_fp32
from tests.fakes import tiny_model

IDS = torch.tensor([[5, 6, 7, 1]])


def half_loss(model):
    with torch.autocast("cpu", torch.float16):
        return model(input_ids=IDS, labels=torch.tensor([[8, 9, 1]])).loss


def overflowing_t5():
    """Feed-forward outputs beyond 65504, as those of trained T5 models."""
    model = tiny_model("t5")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("wi.weight", "wo.weight")):
                parameter.mul_(3000.0)
    return model


@pytest.mark.parametrize("lora", [False, True])
def test_a_t5_that_overflows_in_fp16_does_not_when_guarded(lora):
    model = overflowing_t5()
    if lora:
        model = attach_lora(model, LoraConfig(r=2, target_modules=["q", "wo"]), family_of(model.config))
    expected = model(input_ids=IDS, labels=torch.tensor([[8, 9, 1]])).loss
    assert not torch.isfinite(half_loss(model))
    assert keep_fragile_in_fp32(model) == (12 if lora else 4)
    loss = half_loss(model)
    torch.testing.assert_close(loss.float(), expected, rtol=2e-2, atol=2e-2)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_models_without_fragile_layers_are_left_alone():
    assert keep_fragile_in_fp32(tiny_model("llama")) == 0
