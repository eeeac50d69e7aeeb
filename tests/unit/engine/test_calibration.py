"""Activation peaks that a model finds on texts of its own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rayloom.engine.linear import quantise_rows
from rayloom.engine.runners import build_runner
from rayloom.engine.runners.calibration import activation_peaks
from tests.unit.engine.runner_cases import tiny_model
from tests.unit.engine.test_runner_families import CONFIGS

FAMILIES = ["llama", "gpt2", "gpt_neo", "t5"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_product_gets_its_peaks(name):
    model = tiny_model(CONFIGS[name])
    peaks = activation_peaks(model)
    layers = {path: layer for path, layer in model.named_modules() if "Linear" in type(layer).__name__}
    assert layers.keys() <= peaks.keys()
    assert all(peaks[path].shape == (layer.in_features,) for path, layer in layers.items())
    assert all(torch.isfinite(peak).all() and (peak > 0).any() for peak in peaks.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_always_finds_the_same_and_keeps_no_hooks(name):
    model = tiny_model(CONFIGS[name])
    state = torch.random.get_rng_state()
    first, second = activation_peaks(model), activation_peaks(model)
    assert all(torch.equal(first[path], second[path]) for path in first)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_adapters_are_left_out():
    plain = activation_peaks(tiny_model(CONFIGS["llama"]))
    wrapped = get_peft_model(
        tiny_model(CONFIGS["llama"]), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    found = activation_peaks(wrapped.get_base_model())
    assert all(torch.equal(plain[path], found[path]) for path in plain)


def test_a_runner_in_int8_is_balanced():
    """A feature that is always large is rounded as finely as the others."""
    model = tiny_model(CONFIGS["llama"])
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight[5] = 60.0
        model.model.layers[0].mlp.up_proj.weight[:, 5] = 0.0
        model.model.layers[0].mlp.gate_proj.weight[:, 5] = 0.0
    runner = build_runner(model, num_blocks=4, precision="int8")
    linear = runner._layers[0].gate_up.linear
    normed_TI = torch.randn(20, model.config.hidden_size) * model.model.layers[0].post_attention_layernorm.weight
    weight_OI = torch.cat([model.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.up_proj.weight])
    wanted_TO = normed_TI @ weight_OI.T
    (q_TI, scale_T), (w_OI, scale_O) = quantise_rows(normed_TI), quantise_rows(weight_OI)
    coarse_TO = (q_TI.float() * scale_T[:, None]) @ (w_OI.float() * scale_O[:, None]).T
    with torch.no_grad():
        assert (linear(normed_TI) - wanted_TO).norm() < 0.2 * (coarse_TO - wanted_TO).norm()
