"""From planned rows to tensors on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from rayloom.data import EncodedDataset, MicroBatch, collate
from rayloom.training.loss import target_positions


def to_device(
    dataset: EncodedDataset, micro: MicroBatch, *, pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    """A micro-batch on the device: the arguments of `TokenLoss.forward`.

    Positions are found before the batch moves: on a GPU, asking afterwards would stall the stream.
    """
    batch = collate([dataset[row] for row in micro.rows], pad_token_id=pad_token_id, seq2seq=dataset.seq2seq)
    batch["positions"] = target_positions(batch["labels"], seq2seq=dataset.seq2seq)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
