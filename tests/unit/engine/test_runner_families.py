"""Every family's runner against transformers: random models, ragged steps, pieces, forks, blocks in any order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5Config,
    UMT5Config,
)

from rayloom.engine import kernels, linear
from rayloom.engine.assembling import assemble
from rayloom.engine.plan import Plan, Reading
from rayloom.engine.runners import build_runner, check_parity, weights
from rayloom.engine.runners.generic import GenericRunner
from rayloom.errors import ModelError
from tests.unit.engine.runner_cases import NUM_BLOCKS, VOCABULARY, Stage, tiny_model, whole_logits

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_SMALL_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": 80, "n_embd": 32, "n_layer": 3, "n_head": 4}
_NEO: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 80,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "window_size": 6,
}


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


CONFIGS = {
    "llama": LlamaConfig(**_LLAMA),
    "llama, tied, biases, one kv head": LlamaConfig(
        **_LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "llama, wide heads, gelu": LlamaConfig(**_LLAMA | {"num_key_value_heads": 4, "head_dim": 12, "hidden_act": "gelu"}),
    "llama 3 rope": LlamaConfig(
        **_LLAMA,
        **_rope(
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "yarn rope": LlamaConfig(**_LLAMA, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "linear rope": LlamaConfig(**_LLAMA, **_rope(rope_type="linear", factor=2.0)),
    "mistral": MistralConfig(**_LLAMA | {"sliding_window": 7}),
    "qwen2": Qwen2Config(**_LLAMA | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": Qwen3Config(**_LLAMA),
    "smollm3": SmolLM3Config(**_LLAMA | {"no_rope_layers": [1, 0, 1]}),
    "smollm3, sliding": SmolLM3Config(
        **_LLAMA | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5}
    ),
    "gpt2": GPT2Config(**_GPT2),
    "gpt2, scaled by layer, relu": GPT2Config(
        **_GPT2, scale_attn_by_inverse_layer_idx=True, activation_function="relu", n_inner=24, tie_word_embeddings=False
    ),
    "gpt2, not scaled": GPT2Config(**_GPT2, scale_attn_weights=False, activation_function="quick_gelu"),
    "gpt_neo": GPTNeoConfig(**_NEO),
    "gpt_neo, wide": GPTNeoConfig(**_NEO | {"intermediate_size": 24, "activation_function": "gelu", "window_size": 17}),
    "t5": T5Config(**_SMALL_T5),
    "t5 1.1": T5Config(**_SMALL_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5, gated silu": T5Config(**_SMALL_T5 | {"relative_attention_num_buckets": 32}, feed_forward_proj="gated-silu"),
    "t5, gated relu": T5Config(**_SMALL_T5, feed_forward_proj="gated-relu"),
    "mt5": MT5Config(**_SMALL_T5),
    "umt5": UMT5Config(**_SMALL_T5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str) -> None:
    model = tiny_model(CONFIGS[name])
    runner = build_runner(model, num_blocks=NUM_BLOCKS, precision="fp32")
    assert not isinstance(runner, GenericRunner)
    stage = Stage(model, runner, seed=len(name))
    for _ in range(5):
        stage.add()
    for _ in range(3):
        stage.step()
    for case in list(stage.cases):
        if case.sequence.num_computed and not case.is_done:
            stage.fork(case)
    stage.finish()
    assert stage.largest_difference() < 1e-4


WITH_WEIGHTS = ["llama", "llama, tied, biases, one kv head", "gpt2", "gpt_neo", "t5", "t5 1.1"]


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_model_still_works(name: str, precision: Any) -> None:
    model = tiny_model(CONFIGS[name])
    encoder_ids = (3, 4, 5) if model.config.is_encoder_decoder else ()
    before_LV = whole_logits(model, [1, 2, 3], encoder_ids)
    build_runner(model, num_blocks=4, precision=precision)
    torch.testing.assert_close(whole_logits(model, [1, 2, 3], encoder_ids), before_LV, rtol=1e-6, atol=1e-6)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with AMX."""
    for module in (linear, weights):
        monkeypatch.setattr(module, "in_place", lambda _, precision: precision == "fp32")


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_that_are_used_in_place_are_held_once(name: str) -> None:
    model = tiny_model(CONFIGS[name])
    encoder_ids = (3, 4, 5) if model.config.is_encoder_decoder else ()
    before_LV = whole_logits(model, [1, 2, 3], encoder_ids)
    runner = build_runner(model, num_blocks=4, precision="fp32")
    held = {tensor.untyped_storage().data_ptr() for tensor in _tensors(runner) if tensor.numel() > 2 * 32}
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "relative_attention_bias" not in parameter_name:
            assert parameter.untyped_storage().data_ptr() in held, parameter_name
    torch.testing.assert_close(whole_logits(model, [1, 2, 3], encoder_ids), before_LV, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("in_place")
def test_weights_that_are_used_in_place_begin_a_cache_line() -> None:
    """As tensors of a file do not."""
    model = tiny_model(CONFIGS["llama"])
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    before_OI = layer.weight.detach().clone()
    layer.weight.data = torch.empty(before_OI.numel() + 1)[1:].view_as(before_OI).copy_(before_OI)
    product = weights.project(model, ["model.layers.0.mlp.down_proj"], weights.Packing("fp32")).linear
    assert isinstance(product, linear.FloatLinear)
    assert product.weight_OI.data_ptr() % 64 == 0
    assert torch.equal(layer.weight, before_OI)
    assert layer.weight.data_ptr() == product.weight_OI.data_ptr()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "t5 1.1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_gate_lets_right_models_pass_in_every_precision(name: str, precision: Any) -> None:
    model = tiny_model(CONFIGS[name])
    check_parity(model, build_runner(model, num_blocks=16, precision=precision))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo", "t5 1.1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_gate_refuses_other_logits(name: str, precision: Any) -> None:
    model = tiny_model(CONFIGS[name])
    runner = build_runner(tiny_model(CONFIGS[name], seed=1), num_blocks=16, precision=precision)
    with pytest.raises(ModelError, match="is not served: its logits differ"):
        check_parity(model, runner)


def test_the_gate_refuses_what_is_not_a_number() -> None:
    model = tiny_model(CONFIGS["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="differ"):
        check_parity(model, build_runner(model, num_blocks=16, precision="fp32"))


def test_the_gate_says_when_the_cache_is_too_small() -> None:
    model = tiny_model(CONFIGS["llama"])
    with pytest.raises(ModelError, match="blocks"):
        check_parity(model, build_runner(model, num_blocks=2, precision="fp32"))


@pytest.mark.skipif(not kernels.available(), reason="only the C++ kernels promise equal bits")
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neo", "t5", "t5 1.1"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_logits_have_the_same_bits_in_any_company_and_any_pieces(name: str, precision: Any) -> None:
    model = tiny_model(CONFIGS[name])
    found = []
    for seed in range(2):
        stage = Stage(model, build_runner(model, num_blocks=NUM_BLOCKS, precision=precision), seed)
        for tokens in (list(range(40)), list(range(50, 73))):
            stage.place(tokens, tuple(range(20)) if stage.runner.seq2seq else ())
        for _ in range(5 * seed):
            stage.add()
        stage.finish()
        found.append([case.found[len(case.sequence.tokens) - 1] for case in stage.cases[:2]])
    for alone_V, among_others_V in zip(*found, strict=True):
        assert torch.equal(alone_V, among_others_V)


def test_a_step_may_only_read_prompts() -> None:
    model = tiny_model(CONFIGS["t5"])
    runner = build_runner(model, num_blocks=NUM_BLOCKS, precision="fp32")
    stage = Stage(model, runner, seed=4)
    for _ in range(3):
        stage.add()
    groups = tuple(case.group for case in stage.cases)
    plan = Plan(encode=groups, spans=(), copies=(), preempted=(), admitted=())
    assert runner.run(assemble(plan, lambda _: -1, runner.device)).shape == (0, VOCABULARY)
    for group in groups:
        group.encoded = True
    stage.finish()
    assert stage.largest_difference() < 1e-4


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_a_prompt_that_is_read_in_pieces_gives_the_same_bits(name: str) -> None:
    model = tiny_model(CONFIGS[name])
    found = []
    for cuts in ((), (1,)):
        runner = build_runner(model, num_blocks=NUM_BLOCKS, precision="fp32")
        stage = Stage(model, runner, seed=6)
        stage.add()
        group, memory = stage.cases[0].group, dict[str, Any]()
        for first, end in pairwise((0, *cuts, runner.encoder_layers)):
            reading = Reading(group, first, end)
            plan = Plan(encode=(), spans=(), copies=(), preempted=(), admitted=(), reading=reading)
            runner.run(assemble(plan, lambda _: -1, runner.device, memory))
        assert not memory
        tensors = (*runner.cache.keys, *runner.cache.values)
        found.append(torch.cat([tensor[group.cross_blocks].nan_to_num().flatten() for tensor in tensors]))
        group.encoded = True
        stage.finish()
        assert stage.largest_difference() < 1e-4
    assert torch.equal(*found)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_change_with_length_are_left_to_transformers(rope_type: str) -> None:
    more = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4} if rope_type == "longrope" else {}
    config = LlamaConfig(
        **_LLAMA, **_rope(rope_type=rope_type, factor=2.0, original_max_position_embeddings=32, **more)
    )
    assert isinstance(build_runner(tiny_model(config), num_blocks=4, precision="fp32"), GenericRunner)


def _tensors(thing: Any, seen: set[int] | None = None) -> list[torch.Tensor]:
    """All tensors that an object of ours holds."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return [thing]
    inside = thing if isinstance(thing, list | tuple) else list(getattr(thing, "__dict__", {}).values())
    return [tensor for part in inside for tensor in _tensors(part, seen)]
