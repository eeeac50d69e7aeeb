"""Frozen weights that are cast once: the same bits under autocast, untouched outside it."""

from __future__ import annotations

import copy

import pytest
import torch

from rayloom.config import LoraConfig
from rayloom.models import FAMILIES as KINDS
from rayloom.models import attach_lora
from rayloom.training.frozen import cast_frozen_once
from tests.fakes import FAMILIES, tiny_model

IDS = torch.arange(2, 26).reshape(2, 12)


def adapted(family: str):
    torch.manual_seed(0)
    model = attach_lora(tiny_model(family), LoraConfig(r=2), KINDS[family])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.train()


def step(model):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_has_the_same_bits(family):
    model = adapted(family)
    changed = copy.deepcopy(model)
    assert cast_frozen_once(changed, torch.bfloat16) > 4
    loss, gradients = step(model)
    other, others = step(changed)
    assert torch.equal(loss, other)
    assert gradients
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS, labels=IDS).logits, changed(input_ids=IDS, labels=IDS).logits)


def test_weights_are_cast_no_more(monkeypatch):
    model = adapted("llama")
    cast_frozen_once(model, torch.bfloat16)
    wide = {
        id(layer.weight)
        for layer in model.modules()
        if type(layer) is torch.nn.Linear and not layer.weight.requires_grad
    }
    original, seen = torch.nn.functional.linear, []
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: seen.append(id(w)) or original(x, w, b))
    step(model)
    assert seen
    assert not wide & set(seen)


def test_trained_layers_and_full_models_stay():
    assert cast_frozen_once(tiny_model("llama"), torch.bfloat16) == 0
    model = adapted("llama")
    cast_frozen_once(model, torch.bfloat16)
    names = set(model.state_dict())
    assert names == set(adapted("llama").state_dict())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
