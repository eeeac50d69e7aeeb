"""Models without a runner of their own, through transformers' forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BloomConfig, GPTNeoXConfig, LlamaConfig, LongT5Config, OPTConfig

from rayloom.engine.runners import build_runner, check_parity
from rayloom.engine.runners.generic import GenericRunner
from rayloom.errors import ModelError
from tests.unit.engine.runner_cases import NUM_BLOCKS, VOCABULARY, Stage, tiny_model

CONFIGS: dict[str, Any] = {
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=96,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=96,
        word_embed_proj_dim=32,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "bart": BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=96,
    ),
    "longt5": LongT5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        local_radius=7,
        decoder_start_token_id=0,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str) -> None:
    model = tiny_model(CONFIGS[name])
    runner = build_runner(model, num_blocks=NUM_BLOCKS, precision="fp32")
    assert isinstance(runner, GenericRunner)
    stage = Stage(model, runner, seed=len(name))
    for _ in range(4):
        stage.add()
    for _ in range(2):
        stage.step()
    for case in list(stage.cases):
        if case.sequence.num_computed and not case.is_done:
            stage.fork(case)
    stage.finish()
    assert stage.largest_difference() < 1e-4
    check_parity(model, runner)


def test_blocks_that_are_used_again_forget_their_prompt() -> None:
    model = tiny_model(CONFIGS["bart"])
    runner = build_runner(model, num_blocks=16, precision="fp32")
    for seed in range(6):  # each stage uses the same few blocks in another order
        stage = Stage(model, runner, seed)
        stage.add()
        stage.finish()
        assert stage.largest_difference() < 1e-4
    assert len(runner._encoded) <= 16


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_are_refused(precision: Any) -> None:
    with pytest.raises(ModelError, match="as they were loaded"):
        build_runner(tiny_model(CONFIGS["opt"]), num_blocks=4, precision=precision)


def test_bfloat16_models_are_served_in_bfloat16() -> None:
    model = tiny_model(CONFIGS["gpt_neox"]).to(torch.bfloat16)
    check_parity(model, build_runner(model, num_blocks=16, precision="bf16"))


def test_a_small_budget_of_logits_changes_nothing() -> None:
    model = tiny_model(CONFIGS["gpt_neox"])
    stage = Stage(model, GenericRunner(model, num_blocks=NUM_BLOCKS, precision="fp32", max_logits=1), seed=1)
    for _ in range(4):
        stage.add()
    stage.finish()
    assert stage.largest_difference() < 1e-4


def test_changing_rope_is_right() -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    model = tiny_model(config)
    check_parity(model, build_runner(model, num_blocks=16, precision="fp32"))
