"""Examples to padded tensors. Shape letters: B rows, T positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rayloom.data.dataset import IGNORED, Example


def collate(
    examples: Sequence[Example], *, pad_token_id: int, seq2seq: bool, pad_to_multiple_of: int = 1
) -> dict[str, torch.Tensor]:
    """Pad examples on the right.

    Args:
        examples: At least one.
        pad_token_id: Fills input_ids; masked by attention_mask.
        seq2seq: Labels are a sequence of their own length.
        pad_to_multiple_of: Lengths are rounded up to this (8 suits tensor cores).

    Returns:
        ``input_ids`` and ``attention_mask`` (B, T), ``labels`` (B, T; seq2seq: B, target T) with -100 where
        there is no loss; all int64.
    """
    assert examples, "a micro-batch is never empty"
    inputs = [example.input_ids for example in examples]
    labels = [example.labels for example in examples]
    assert seq2seq or all(len(i) == len(t) for i, t in zip(inputs, labels, strict=True)), "causal labels are aligned"
    input_ids_BT = _pad(inputs, pad_token_id, pad_to_multiple_of)
    lengths_B1 = torch.tensor([[len(ids)] for ids in inputs])
    attention_mask_BT = (torch.arange(input_ids_BT.shape[1]) < lengths_B1).long()
    return {
        "input_ids": input_ids_BT,
        "attention_mask": attention_mask_BT,
        "labels": _pad(labels, IGNORED, pad_to_multiple_of),
    }


def _pad(sequences: list[list[int]], value: int, multiple: int) -> torch.Tensor:
    longest = max(len(sequence) for sequence in sequences)
    width = -(-longest // multiple) * multiple
    padded_BT = torch.full((len(sequences), width), value, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        padded_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded_BT
