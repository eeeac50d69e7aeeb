"""From planned rows to tensors on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from rayloom.data import EncodedDataset, MicroBatch, collate
from rayloom.training.loss import IGNORED


def to_device(
    dataset: EncodedDataset, micro: MicroBatch, *, pad_token_id: int, device: torch.device
) -> tuple[dict[str, Tensor], int]:
    """A micro-batch on the device, and the first position at which any of its rows has a target.

    The position is found before the batch moves: on a GPU, asking afterwards would stall the stream.
    """
    batch = collate([dataset[row] for row in micro.rows], pad_token_id=pad_token_id, seq2seq=dataset.seq2seq)
    first_target = int((batch["labels"] != IGNORED).any(0).to(torch.int8).argmax())
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}, first_target
