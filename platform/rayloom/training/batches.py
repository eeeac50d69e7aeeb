"""From planned rows to tensors on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from rayloom.data import Dataset, MicroBatch, Packing, collate, collate_packed
from rayloom.training.loss import target_positions

Batch = dict[str, Tensor]
"""The arguments of `TokenLoss.forward`."""


def to_device(
    dataset: Dataset,
    micro: MicroBatch,
    *,
    pad_token_id: int,
    device: torch.device,
    packing: Packing | None = None,
) -> Batch:
    """A micro-batch on the device.

    Args:
        dataset: The rows.
        micro: Which of them.
        pad_token_id: Fills up rows.
        device: Where to.
        packing: How rows share sequences; each has its own where None.
    """
    return moved(to_tensors(dataset, micro, pad_token_id=pad_token_id, packing=packing), device)


def to_tensors(dataset: Dataset, micro: MicroBatch, *, pad_token_id: int, packing: Packing | None) -> Batch:
    """A micro-batch in host memory. See `to_device`.

    Positions are found before the batch moves: on a GPU, asking afterwards would stall the stream.
    """
    examples, seq2seq = [dataset[row] for row in micro.rows], dataset.seq2seq
    if packing is None:
        batch = collate(examples, pad_token_id=pad_token_id, seq2seq=seq2seq)
    else:
        batch = collate_packed(examples, pad_token_id=pad_token_id, seq2seq=seq2seq, packing=packing)
    batch["positions"] = target_positions(batch["labels"], seq2seq=seq2seq)
    return batch


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; does not wait for it where its memory is pinned."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
