"""Validation loss over all ranks."""

from __future__ import annotations

import math

import torch

from rayloom.data import Dataset, plan_evaluation
from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.batches import to_device


def token_loss(backend: Backend, dataset: Dataset, *, batch_size: int, pad_token_id: int) -> float:
    """Mean negative log-likelihood per target token, equal on all ranks.

    Token-weighted: independent of batch size, padding and number of workers. Every rank runs equally many
    batches, since under ZeRO-3 each forward pass is a collective.
    """
    total = torch.zeros((), device=backend.device)
    for round_ in plan_evaluation(dataset.lengths, batch_size=batch_size, world_size=distributed.world_size()):
        micro = round_[distributed.rank()]
        batch = to_device(dataset, micro, pad_token_id=pad_token_id, device=backend.device)
        loss = backend.loss(batch)
        if not micro.is_filler:
            total += loss
    (summed,) = distributed.sum_over_ranks([float(total)], backend.device)
    targets = int(dataset.target_counts.sum())
    return summed / targets if targets else math.nan
