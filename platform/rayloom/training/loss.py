"""The training loss: cross-entropy summed over target tokens.

Shape letters: B rows (packed: bins of rows), T positions, D hidden width, N target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from rayloom.data import Packing
from rayloom.training.likelihood import summed_likelihood
from rayloom.training.packed_attention import as_scores, same_row, segments

IGNORED = -100


class TokenLoss(nn.Module):
    """Wraps a model so that its forward pass is the summed loss, which is what DDP and DeepSpeed then wrap.

    Summed, not averaged: the caller divides by the target tokens of the *global* batch, so that the loss does
    not depend on how rows fall into micro-batches and workers. Logits are computed at target positions only: on short
    answers with a large vocabulary, the others would cost as much as the rest of the model.

    Args:
        model: A transformers or PEFT model.
        seq2seq: Whether labels belong to a decoder of their own.
        label_smoothing: Share of the target mass spread over the vocabulary.
    """

    def __init__(self, model: nn.Module, *, seq2seq: bool, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.seq2seq = seq2seq
        self.packing: Packing | None = None
        """How rows of train micro-batches share sequences; `enable_packing` sets it."""
        self.label_smoothing = label_smoothing
        # PEFT wraps the model whose head and configuration count.
        base: Any = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
        self.hf_config: Any = base.config
        self._find_head, self._find_embeddings = base.get_output_embeddings, base.get_input_embeddings
        self._find_encoder = base.get_encoder
        self._start_token_id: int | None = getattr(base.config, "decoder_start_token_id", None)
        self._pad_token_id: int = base.config.pad_token_id or 0

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        target_position_ids: Tensor | None = None,
    ) -> Tensor:
        """Summed negative log-likelihood of the labels, of rows that are padded or packed.

        Args:
            input_ids: Token ids (B, T).
            labels: Target ids, -100 where there is none: (B, T) for causal models, (B, T') for seq2seq ones.
            positions: Places (N) in the flattened outputs whose next token is a target, see `target_positions`.
            attention_mask: Padded rows: 1 on tokens, 0 on padding (B, T).
            position_ids: Packed rows, instead: place of a token in its row (B, T), 0 on padding.
            target_position_ids: The same of the labels of seq2seq models (B, T').

        Returns:
            Scalar, float32.
        """
        inputs: dict[str, Any] = {"use_cache": False}
        if self.seq2seq:
            assert self._start_token_id is not None, "an encoder-decoder has a start token"
            inputs["decoder_input_ids"] = shift_right(
                labels, self._start_token_id, self._pad_token_id, target_position_ids
            )
        if position_ids is None:
            inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        elif target_position_ids is None:
            inputs |= {"input_ids": input_ids, "position_ids": position_ids}
        else:
            inputs |= self._packed_pairs(input_ids, segments(position_ids), segments(target_position_ids))
        with self._only_at(positions):
            logits: Tensor = self.model(**inputs).logits
        if logits.dim() == 3:  # a model whose head is no module of its own
            logits = logits.flatten(0, 1).index_select(0, positions)
        targets_N = labels.flatten().index_select(0, positions + (0 if self.seq2seq else 1))
        smoothing = self.label_smoothing if self.training else 0.0
        return summed_likelihood(logits, targets_N, label_smoothing=smoothing)

    def _packed_pairs(self, input_ids: Tensor, sources_BT: Tensor, targets_BT: Tensor) -> dict[str, Any]:
        """An encoder-decoder's inputs: rows are apart in the encoder, the decoder and between the two."""

        def mask(seen: Tensor) -> Tensor:
            if self.hf_config._attn_implementation == "sdpa":
                return seen
            return as_scores(seen, self._find_embeddings().weight.dtype)

        # The model would hand one and the same mask to its encoder and to cross-attention, hence the call here.
        encoded = self._find_encoder()(input_ids=input_ids, attention_mask=mask(same_row(sources_BT, sources_BT)))
        return {
            "encoder_outputs": encoded,
            "attention_mask": mask(same_row(targets_BT, sources_BT)),
            "decoder_attention_mask": mask(same_row(targets_BT, targets_BT, causal=True)),
        }

    @contextlib.contextmanager
    def _only_at(self, positions: Tensor) -> Iterator[None]:
        """Let the head see only some positions: (B, T, D) becomes (N, D)."""

        def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (hidden_BTD,) = args
            return (hidden_BTD.flatten(0, 1).index_select(0, positions),)

        head: nn.Module | None = self._find_head()
        handle = head.register_forward_pre_hook(select) if head is not None else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


def target_positions(labels_BT: Tensor, *, seq2seq: bool) -> Tensor:
    """Places in the flattened outputs (B x T) that predict a target (N).

    Args:
        labels_BT: Target ids, -100 where there is none.
        seq2seq: Position t predicts label t; causal models predict label t + 1.
    """
    is_target_BT = labels_BT != IGNORED
    if not seq2seq:
        is_target_BT = F.pad(is_target_BT[:, 1:], (0, 1), value=False)
    return is_target_BT.flatten().nonzero().squeeze(1)


def shift_right(
    labels_BT: Tensor, start_token_id: int, pad_token_id: int, position_ids_BT: Tensor | None = None
) -> Tensor:
    """Decoder inputs of seq2seq training: the labels one place later, behind the start token (B, T).

    Args:
        labels_BT: Target ids, -100 where there is none.
        start_token_id: Stands before the first label of a row.
        pad_token_id: Stands where there is no label.
        position_ids_BT: Of packed rows: 0 where one starts.
    """
    shifted = torch.full_like(labels_BT, start_token_id)
    shifted[:, 1:] = labels_BT[:, :-1]
    if position_ids_BT is not None:
        shifted = shifted.masked_fill(position_ids_BT == 0, start_token_id)
    return shifted.masked_fill(shifted == IGNORED, pad_token_id)
