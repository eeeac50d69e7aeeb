"""Runners with several LoRA adapters in one step, against PEFT's own forward pass with each alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import GPT2Config, GPTNeoConfig, LlamaConfig, OPTConfig, T5Config

from rayloom.engine.adapters import LoraBank, adaptable_layers
from rayloom.engine.request import Group
from rayloom.engine.runners import build_runner, check_parity
from tests.unit.engine.runner_cases import NUM_BLOCKS, VOCABULARY, Stage, tiny_model, whole_logits

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
MODELS: dict[str, tuple[Any, tuple[list[str], list[str]]]] = {
    "llama": (
        LlamaConfig(**_SIZES, intermediate_size=48, num_key_value_heads=2),
        (["q_proj", "v_proj", "down_proj"], ["k_proj", "o_proj", "gate_proj", "up_proj"]),
    ),
    "gpt2": (
        GPT2Config(**_SIZES),
        (["c_attn", "attn.c_proj"], ["c_fc", "mlp.c_proj"]),
    ),
    "gpt_neo": (
        GPTNeoConfig(
            **{name: value for name, value in _SIZES.items() if name != "num_hidden_layers"},
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
        ),
        (["q_proj", "out_proj"], ["v_proj", "c_fc", "c_proj"]),
    ),
    "t5": (
        T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4),
        (["q", "k", "v", "o"], ["wi", "wo", "EncDecAttention.k"]),
    ),
    "opt, by transformers": (
        OPTConfig(**_SIZES, ffn_dim=48, word_embed_proj_dim=32),
        (["q_proj", "v_proj"], ["fc1", "out_proj"]),
    ),
}


def _adapted(name: str) -> Any:
    """A PEFT model with two adapters of random weights."""
    config, targets = MODELS[name]
    model: Any = tiny_model(config)
    for adapter, modules in zip(("one", "two"), targets, strict=True):
        settings = peft.LoraConfig(
            r=3 if adapter == "one" else 5,
            lora_alpha=6,
            target_modules=modules,
            fan_in_fan_out=name == "gpt2",
            task_type="SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM",
        )
        if adapter == "one":
            model = peft.get_peft_model(model, settings, adapter_name=adapter)
        else:
            model.add_adapter(adapter, settings)
    torch.manual_seed(1)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.filterwarnings("ignore:Adapter .* was active")
@pytest.mark.parametrize("name", MODELS)
def test_mixed_adapters_equal_peft(name: str, tmp_path: Path) -> None:
    model = _adapted(name)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    base = model.get_base_model()
    runner = build_runner(base, num_blocks=NUM_BLOCKS, precision="fp32")
    check_parity(base, runner)
    runner.lora = LoraBank(4, 8, adaptable_layers(base))
    for adapter in ("one", "two"):
        runner.lora.load(adapter, tmp_path / adapter)

    def expected(group: Group) -> torch.Tensor:
        adapter = group.request.adapter
        model.set_adapter(adapter or "one")
        with contextlib.nullcontext() if adapter else model.disable_adapter():
            return whole_logits(base, group.sequences[0].tokens, group.request.encoder_ids)

    stage = Stage(base, runner, seed=3)
    stage.expected = expected
    for adapter in ("one", None, "two", "one", "two", None):
        stage.add(adapter=adapter)
    stage.step()
    for case in list(stage.cases):
        if case.sequence.num_computed and not case.is_done:
            stage.fork(case)
    stage.finish()
    assert stage.largest_difference() < 1e-4
