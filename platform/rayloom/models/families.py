"""The table of families: what differs between architectures, as data instead of subclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from rayloom.errors import ModelError

FamilyName = Literal["t5", "gpt2", "gpt_neo", "llama", "causal", "seq2seq"]


@dataclass(frozen=True)
class Family:
    """What Rayloom must know about an architecture.

    Attributes:
        name: Name in the table and in manifests.
        seq2seq: Encoder-decoder (prompt and answer apart) or decoder-only (answer continues the prompt).
        model_types: ``model_type`` values of transformers configurations that belong to it.
        lora_targets: Layers that get an adapter by default, by the end of their name.
        fp16_safe: Whether activations stay within half precision's range. T5's do not
            (huggingface/transformers#4938).
        positions_field: Configuration field with the longest sequence; None if positions are relative.
        materialises_scores: Whether attention keeps its score matrix for the backward pass.
    """

    name: FamilyName
    seq2seq: bool
    model_types: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    fp16_safe: bool = True
    positions_field: str | None = "max_position_embeddings"
    materialises_scores: bool = False


FAMILIES: dict[FamilyName, Family] = {
    "t5": Family(
        "t5",
        seq2seq=True,
        model_types=("t5", "mt5", "umt5", "longt5"),
        lora_targets=("q", "k", "v", "o"),
        fp16_safe=False,
        positions_field=None,
        materialises_scores=True,
    ),
    "gpt2": Family(
        "gpt2",
        seq2seq=False,
        model_types=("gpt2",),
        # The feed-forward layer has a c_proj of its own, hence the longer name.
        lora_targets=("c_attn", "attn.c_proj"),
    ),
    "gpt_neo": Family(
        "gpt_neo",
        seq2seq=False,
        model_types=("gpt_neo",),
        lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        materialises_scores=True,
    ),
    "llama": Family(
        "llama",
        seq2seq=False,
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    "causal": Family("causal", seq2seq=False),
    "seq2seq": Family("seq2seq", seq2seq=True, materialises_scores=True),
}
"""Named families first; ``causal`` and ``seq2seq`` stand for anything else that transformers knows."""


def family_of(hf_config: Any) -> Family:
    """The family of a model, by its transformers configuration.

    Args:
        hf_config: A ``PretrainedConfig``.

    Raises:
        ModelError: The model does not generate text, or transformers does not know it.
    """
    model_type = str(getattr(hf_config, "model_type", ""))
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    if getattr(hf_config, "is_encoder_decoder", False):
        if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return FAMILIES["seq2seq"]
    elif model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not _is_encoder_only(hf_config, model_type):
        return FAMILIES["causal"]
    raise ModelError(
        f"a model of type '{model_type}' does not generate text with transformers; take a causal one (GPT-2, "
        "GPT-Neo, LLaMA, …) or a seq2seq one (T5, BART, …)"
    )


def _is_encoder_only(hf_config: Any, model_type: str) -> bool:
    """BERT and its kin count as causal for transformers, but write nonsense unless trained as decoders."""
    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(hf_config, "is_decoder", None) is False
