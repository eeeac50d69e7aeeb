"""T5's position biases against transformers' own, over random numbers of buckets and distances."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from rayloom.engine.runners.relative import causal_bias, spread, two_way_bias


def _attention(seed: int, *, is_decoder: bool) -> Any:
    draw = random.Random(seed)
    num_buckets = 4 * draw.randint(2, 12)
    config = T5Config(
        num_heads=2,
        d_kv=4,
        d_model=8,
        is_decoder=is_decoder,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=num_buckets + draw.randint(1, 150),
    )
    torch.manual_seed(seed)
    return T5Attention(config, has_relative_attention_bias=True, layer_idx=0)


@pytest.mark.parametrize("seed", range(12))
def test_a_decoder_s_bias_by_distance(seed: int) -> None:
    attention, length = _attention(seed, is_decoder=True), 260
    table_HP = causal_bias(attention.relative_attention_bias.weight.detach(), attention.relative_attention_max_distance)
    distances = (torch.arange(length)[:, None] - torch.arange(length)).clamp(0, table_HP.shape[1] - 1)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    expected_HLL = attention.compute_bias(length, length)[0].detach()
    assert torch.equal(table_HP[:, distances][:, seen], expected_HLL[:, seen])


@pytest.mark.parametrize("seed", range(12))
def test_an_encoder_s_bias_by_position(seed: int) -> None:
    attention, length = _attention(seed, is_decoder=False), 260
    table_HP = two_way_bias(
        attention.relative_attention_bias.weight.detach(), attention.relative_attention_max_distance
    )
    assert torch.equal(spread(table_HP, length), attention.compute_bias(length, length)[0].detach())
