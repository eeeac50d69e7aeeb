"""From planned rows to tensors on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from rayloom.data import EncodedDataset, MicroBatch, Packing, collate, collate_packed
from rayloom.training.loss import target_positions


def to_device(
    dataset: EncodedDataset,
    micro: MicroBatch,
    *,
    pad_token_id: int,
    device: torch.device,
    packing: Packing | None = None,
) -> dict[str, Tensor]:
    """A micro-batch on the device: the arguments of `TokenLoss.forward`.

    Positions are found before the batch moves: on a GPU, asking afterwards would stall the stream.

    Args:
        dataset: The rows.
        micro: Which of them.
        pad_token_id: Fills up rows.
        device: Where to.
        packing: How rows share sequences; each has its own where None.
    """
    examples, seq2seq = [dataset[row] for row in micro.rows], dataset.seq2seq
    if packing is None:
        batch = collate(examples, pad_token_id=pad_token_id, seq2seq=seq2seq)
    else:
        batch = collate_packed(examples, pad_token_id=pad_token_id, seq2seq=seq2seq, packing=packing)
    batch["positions"] = target_positions(batch["labels"], seq2seq=seq2seq)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
