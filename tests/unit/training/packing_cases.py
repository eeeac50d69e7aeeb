"""Tiny random models of every kind that packs, rows for them, and their gradients."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from rayloom.data import IGNORED, EncodedDataset, Example, MicroBatch, Packing
from rayloom.training import TokenLoss
from rayloom.training.batches import to_device
from tests.fakes import VOCABULARY

EAGER_AND_SDPA = ("eager", "sdpa")
KINDS = {
    "llama": EAGER_AND_SDPA,
    "mistral": EAGER_AND_SDPA,  # sliding window
    "qwen2": EAGER_AND_SDPA,  # sliding window in some layers
    "gpt2": EAGER_AND_SDPA,
    "gpt_neo": ("eager",),  # all it has
    "t5": EAGER_AND_SDPA,
    "mt5": EAGER_AND_SDPA,
    "umt5": EAGER_AND_SDPA,
}
CASES = [(kind, attention) for kind, attentions in KINDS.items() for attention in attentions]
"""Model types with the attention implementations that transformers has for them on CPUs."""


def is_pair(kind: str) -> bool:
    return "t5" in kind


def random_model(kind: str, attention: str, *, seed: int = 0, heads: int = 4) -> PreTrainedModel:
    """A model with weights large enough that attention matters.

    Args:
        kind: Model type.
        attention: Implementation.
        seed: Of the weights.
        heads: Attention heads.
    """
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "attn_implementation": attention}
    rope = ids | {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    pair = ids | {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": heads,
        "dropout_rate": 0.0,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": 0,
    }
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": heads, "n_positions": 64}
    neo = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": heads,
        "intermediate_size": 48,
        "window_size": 3,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 256,
    }
    no_dropout = dict.fromkeys(("resid_dropout", "embed_dropout", "attention_dropout"), 0.0)
    model: PreTrainedModel = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**rope)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**rope, sliding_window=4)),
        "qwen2": lambda: Qwen2ForCausalLM(
            Qwen2Config(**rope, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(**ids, vocab_size=VOCABULARY, **gpt2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        ),
        "gpt_neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(**ids, vocab_size=VOCABULARY, **neo, **no_dropout)),
        "t5": lambda: T5ForConditionalGeneration(T5Config(**pair)),
        "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**pair)),
        "umt5": lambda: UMT5ForConditionalGeneration(UMT5Config(**pair)),
    }[kind]()
    if is_pair(kind):  # its weights are large already
        return model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def random_rows(sizes: list[tuple[int, int]], *, pair: bool, seed: int = 0) -> EncodedDataset:
    """Rows of random ids.

    Args:
        sizes: Prompt and target tokens of each; a causal row without a prompt is a document, learned whole.
        pair: Targets are sequences of their own.
        seed: Of the ids.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for prompt_size, target_size in sizes:
        prompt, target = (rng.integers(2, VOCABULARY, size).tolist() for size in (prompt_size, target_size))
        if pair:
            examples.append(Example([*prompt, 1], [*target, 1]))
        else:
            examples.append(Example([*prompt, *target, 1], [*[IGNORED] * len(prompt), *target, 1]))
    return EncodedDataset.from_examples(examples, seq2seq=pair)


def gradients(
    module: TokenLoss, data: EncodedDataset, rows: list[int], packing: Packing | None, *, scale: float = 1.0
) -> float:
    """Add the gradients of some rows, as a backend does; returns their summed loss."""
    batch = to_device(data, MicroBatch(tuple(rows)), pad_token_id=0, device=torch.device("cpu"), packing=packing)
    loss = module(**batch)
    (loss * scale).backward()
    return float(loss.detach())


def taken(module: TokenLoss) -> dict[str, torch.Tensor]:
    """The gradients so far, which start anew."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_same_gradients(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, tolerance: float = 1e-5
) -> None:
    """Equal to a part of the largest gradient of all."""
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert largest > 0
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=tolerance, atol=tolerance * largest, msg=name)
