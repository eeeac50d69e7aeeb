"""Well-known models by name, as dimensions: sizes can be told without the hub."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    T5Config,
)

from rayloom.models.random_init import attention_types

_OWNERS = (
    "google-t5",
    "google",
    "openai-community",
    "EleutherAI",
    "HuggingFaceTB",
    "TinyLlama",
    "meta-llama",
    "unsloth",
)


def _t5(width: int, inner: int, layers: int, heads: int, *, v1_1: bool = False) -> Any:
    """T5 (Raffel et al., 2019); v1.1, as FLAN-T5 has it, gates its feed-forward and unties its head."""
    return T5Config(
        d_model=width,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        vocab_size=32128,
        feed_forward_proj="gated-gelu" if v1_1 else "relu",
        tie_word_embeddings=not v1_1,
    )


def _gpt2(width: int, layers: int, heads: int) -> Any:
    return GPT2Config(n_embd=width, n_layer=layers, n_head=heads)


def _gpt_neo(width: int, layers: int, heads: int) -> Any:
    return GPTNeoConfig(hidden_size=width, num_layers=layers, num_heads=heads, attention_types=attention_types(layers))


def _llama(sizes: tuple[int, int, int, int, int], vocabulary: int, positions: int, *, tied: bool = False) -> Any:
    """LLaMA: (width, feed-forward width, layers, heads, key-value heads)."""
    width, inner, layers, heads, kv_heads = sizes
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )


VARIANTS: dict[str, Any] = {
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
    "flan-t5-small": _t5(512, 1024, 8, 6, v1_1=True),
    "flan-t5-base": _t5(768, 2048, 12, 12, v1_1=True),
    "flan-t5-large": _t5(1024, 2816, 24, 16, v1_1=True),
    "flan-t5-xl": _t5(2048, 5120, 24, 32, v1_1=True),
    "distilgpt2": _gpt2(768, 6, 12),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt-neo-125m": _gpt_neo(768, 12, 12),
    "gpt-neo-1.3B": _gpt_neo(2048, 24, 16),
    "gpt-neo-2.7B": _gpt_neo(2560, 32, 20),
    "SmolLM2-135M": _llama((576, 1536, 30, 9, 3), 49152, 8192, tied=True),
    "SmolLM2-360M": _llama((960, 2560, 32, 15, 5), 49152, 8192, tied=True),
    "SmolLM2-1.7B": _llama((2048, 8192, 24, 32, 32), 49152, 8192, tied=True),
    "TinyLlama-1.1B": _llama((2048, 5632, 22, 32, 4), 32000, 2048),
    "Llama-3.2-1B": _llama((2048, 8192, 16, 32, 8), 128256, 131072, tied=True),
    "Llama-3.2-3B": _llama((3072, 8192, 28, 24, 8), 128256, 131072, tied=True),
    "Llama-2-7b": _llama((4096, 11008, 32, 32, 32), 32000, 4096),
    "Llama-3.1-8B": _llama((4096, 14336, 32, 32, 8), 128256, 131072),
    "Llama-2-13b": _llama((5120, 13824, 40, 40, 40), 32000, 4096),
}
"""transformers configurations by short name."""


def known_variant(name: str) -> Any | None:
    """The configuration of a well-known model, with or without its owner and an ``-Instruct`` or ``-hf``.

    Args:
        name: Such as ``t5-small``, ``google/flan-t5-base`` or ``HuggingFaceTB/SmolLM2-135M-Instruct``.
    """
    owner, _, short = name.rpartition("/")
    if owner and owner not in _OWNERS:
        return None
    short = short.lower()
    for known, config in VARIANTS.items():
        rest = short.removeprefix(known.lower())
        if rest != short and rest in ("", "-hf", "-instruct", "-chat", "-chat-hf", "-chat-v1.0"):
            return config
    return None


def meta_model(hf_config: Any) -> Any:
    """The model of a configuration with shapes but without memory, to count and to look at."""
    auto = AutoModelForSeq2SeqLM if hf_config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(hf_config, dtype=torch.float32)
