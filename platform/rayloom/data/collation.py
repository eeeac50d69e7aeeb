"""Examples to tensors, padded or packed. Shape letters: B rows (packed: bins), T positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from rayloom.data.dataset import IGNORED, Example
from rayloom.data.packing import Packing


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


def collate_packed(
    examples: Sequence[Example], *, pad_token_id: int, seq2seq: bool, packing: Packing
) -> dict[str, torch.Tensor]:
    """Put examples into bins, one after the other.

    Positions start at 0 with every example, and are 0 on padding: they alone say where an example begins.

    Args:
        examples: At least one, none of them empty on either side.
        pad_token_id: Fills up input_ids.
        seq2seq: Labels are a sequence of their own length.
        packing: Which examples share a bin.

    Returns:
        ``input_ids`` and ``position_ids`` (B, T), ``labels`` (B, T; seq2seq: B, target T) with -100 where there
        is no loss, and for seq2seq ``target_position_ids`` (B, target T); all int64. The first label of a
        causal example is -100: what stands before it is another example.
    """
    assert examples, "a micro-batch is never empty"
    sizes = [(len(one.input_ids), len(one.labels)) if seq2seq else (len(one.input_ids),) for one in examples]
    assert all(min(size) > 0 for size in sizes), "an empty example has no place in a bin"
    bins = packing.bins(sizes)
    inputs = [example.input_ids for example in examples]
    labels = [example.labels if seq2seq else [IGNORED, *example.labels[1:]] for example in examples]
    batch = {
        "input_ids": _joined(inputs, bins, pad_token_id),
        "position_ids": _joined([range(len(ids)) for ids in inputs], bins, 0),
        "labels": _joined(labels, bins, IGNORED),
    }
    if seq2seq:
        batch["target_position_ids"] = _joined([range(len(ids)) for ids in labels], bins, 0)
    return batch


def _joined(sequences: Sequence[Sequence[int]], bins: list[list[int]], value: int) -> torch.Tensor:
    """The sequences of each bin one after the other, padded on the right (B, T)."""
    return _pad([list(itertools.chain.from_iterable(sequences[row] for row in rows)) for rows in bins], value, 1)


def _pad(sequences: list[list[int]], value: int, multiple: int) -> torch.Tensor:
    longest = max(len(sequence) for sequence in sequences)
    width = -(-longest // multiple) * multiple
    padded_BT = torch.full((len(sequences), width), value, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        padded_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return padded_BT
