"""Token-weighted perplexity: independent of batch size, order and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rayloom.data import EncodedDataset, plan_evaluation
from rayloom.training.batches import to_device
from rayloom.training.loss import TokenLoss


@dataclass(frozen=True)
class LossSum:
    """Negative log-likelihood of target tokens.

    Attributes:
        total_nll: Sum over tokens, in nats.
        num_tokens: Target tokens (end of sequence included, prompts not).
    """

    total_nll: float
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean per token; NaN if there are no tokens."""
        return self.total_nll / self.num_tokens if self.num_tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Exp of the mean; infinite where that overflows."""
        return math.exp(self.loss) if not self.loss > 700 else math.inf


def token_loss(
    model: torch.nn.Module,
    dataset: EncodedDataset,
    *,
    batch_size: int,
    pad_token_id: int,
    progress: Callable[[int], None] | None = None,
) -> LossSum:
    """Negative log-likelihood of all target tokens, teacher-forced.

    Args:
        model: A model on its device; put into evaluation mode meanwhile.
        dataset: Encoded rows.
        batch_size: Rows per forward pass.
        pad_token_id: Fills shorter rows; masked.
        progress: Told the number of rows of each finished batch.
    """
    device = next(model.parameters()).device
    loss = TokenLoss(model, seq2seq=dataset.seq2seq)
    was_training, total = model.training, 0.0
    loss.eval()
    try:
        with torch.inference_mode():
            for (micro,) in plan_evaluation(dataset.lengths, batch_size=batch_size, world_size=1):
                batch = to_device(dataset, micro, pad_token_id=pad_token_id, device=device)
                total += float(loss(**batch))
                if progress is not None:
                    progress(len(micro.rows))
    finally:
        model.train(was_training)
    return LossSum(total, int(dataset.target_counts.sum()))
