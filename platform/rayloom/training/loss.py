"""The training loss: cross-entropy summed over target tokens.

Shape letters: B rows, T tokens of the input, K logit positions kept, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

IGNORED = -100


class TokenLoss(nn.Module):
    """Wraps a model so that its forward pass is the summed loss, which is what DDP and DeepSpeed then wrap.

    Summed, not averaged: the caller divides by the target tokens of the *global* batch, so that the loss does
    not depend on how rows fall into micro-batches and workers.

    Args:
        model: A transformers or PEFT model.
        seq2seq: Whether labels belong to a decoder of their own.
        label_smoothing: Share of the target mass spread over the vocabulary.
    """

    def __init__(self, model: nn.Module, *, seq2seq: bool, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.seq2seq = seq2seq
        self.label_smoothing = label_smoothing
        # PEFT wraps the model whose signature and configuration count.
        base: Any = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
        self._start_token_id: int | None = getattr(base.config, "decoder_start_token_id", None)
        self._pad_token_id: int = base.config.pad_token_id or 0
        self._trims_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, first_target: int = 0) -> Tensor:
        """Summed negative log-likelihood of the labels.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 on tokens, 0 on padding (B, T).
            labels: Target ids, -100 where there is none: (B, T) for causal models, (B, T') for seq2seq ones.
            first_target: Causal models: no row has a target before this position, so logits start there.

        Returns:
            Scalar, float32.
        """
        if self.seq2seq:
            assert self._start_token_id is not None, "an encoder-decoder has a start token"
            decoder_ids = shift_right(labels, self._start_token_id, self._pad_token_id)
            logits = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_ids,
                use_cache=False,
            ).logits
            return self._summed(logits, labels)
        keep = labels.shape[1] - max(first_target - 1, 0)
        extra = {"logits_to_keep": keep} if self._trims_logits else {}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra).logits
        return self._summed(logits[:, -keep:][:, :-1], labels[:, -keep:][:, 1:])

    def _summed(self, logits_BKV: Tensor, labels_BK: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_BKV.reshape(-1, logits_BKV.shape[-1]).float(),
            labels_BK.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )


def shift_right(labels_BT: Tensor, start_token_id: int, pad_token_id: int) -> Tensor:
    """Decoder inputs of seq2seq training: the labels one place later, behind the start token (B, T)."""
    shifted = torch.full_like(labels_BT, start_token_id)
    shifted[:, 1:] = labels_BT[:, :-1]
    return shifted.masked_fill(shifted == IGNORED, pad_token_id)
