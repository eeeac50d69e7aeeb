"""What merging an adapter into its base changes: measured, since rounding makes it more than nothing.

Shape letters: L tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayloom.models.lora import merge_adapter


@dataclass(frozen=True)
class Drift:
    """How far a merged model's logits are from those of base and adapter apart.

    Attributes:
        num_tokens: Positions compared.
        largest: Largest difference of a logit.
        relative: The same, as a share of the logits' standard deviation.
        equal_tokens: Share of positions whose likeliest token is the same.
    """

    num_tokens: int
    largest: float
    relative: float
    equal_tokens: float


def merge_with_drift(peft_model: Any, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Any, Drift]:
    """Merge an adapter, and compare before and after.

    Args:
        peft_model: Base model and adapter; taken apart by merging.
        sequences: Prompt and answer ids to compare on; at least one position in all.

    Returns:
        The merged model, and how far it drifted.

    Raises:
        ModelError: The adapter holds numbers that are not finite.
    """
    before = [_logits(peft_model, *each) for each in sequences]
    merged = merge_adapter(peft_model)
    after = [_logits(merged, *each) for each in sequences]
    before_LV, after_LV = torch.cat(before), torch.cat(after)
    largest = float((before_LV - after_LV).abs().max())
    equal = (before_LV.argmax(-1) == after_LV.argmax(-1)).float().mean()
    return merged, Drift(len(before_LV), largest, largest / float(before_LV.std().clamp(min=1e-9)), float(equal))


@torch.no_grad()
def _logits(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """float32 logits ``(L, V)``."""
    if model.config.is_encoder_decoder:
        started = [model.config.decoder_start_token_id, *answer]
        inputs = {"input_ids": torch.tensor([[*prompt]]), "decoder_input_ids": torch.tensor([started])}
    else:
        inputs = {"input_ids": torch.tensor([[*prompt, *answer]])}
    logits_LV: Tensor = model(**inputs, use_cache=False).logits[0].float()
    return logits_LV
