"""Token-weighted perplexity: independent of batch size, order and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from rayloom.data import EncodedDataset, plan_evaluation
from rayloom.training.batches import Batch, to_device
from rayloom.training.loss import TokenLoss


@dataclass(frozen=True)
class LossSum:
    """Negative log-likelihood of target tokens.

    Attributes:
        total_nll: Sum over tokens, in nats.
        num_tokens: Target tokens (end of sequence included, prompts not).
        by_row: The same of each row that examples were made of: sum and tokens; 0 and 0 where none was.
    """

    total_nll: float
    num_tokens: int
    by_row: tuple[tuple[float, int], ...] = field(default=(), repr=False)

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
    loss = _ExampleLoss(model, seq2seq=dataset.seq2seq)
    was_training = model.training
    losses = np.zeros(len(dataset))
    loss.eval()
    try:
        with torch.inference_mode():
            for (micro,) in plan_evaluation(dataset.lengths, batch_size=batch_size, world_size=1):
                batch = to_device(dataset, micro, pad_token_id=pad_token_id, device=device)
                losses[list(micro.rows)] = loss.of_each(batch).cpu().numpy()
                if progress is not None:
                    progress(len(micro.rows))
    finally:
        model.train(was_training)
    return LossSum(float(losses.sum()), int(dataset.target_counts.sum()), _by_row(dataset, losses))


def _by_row(dataset: EncodedDataset, losses: Any) -> tuple[tuple[float, int], ...]:
    rows = dataset.row_of if len(dataset.row_of) else np.arange(len(dataset))
    num_rows = max(dataset.report.num_rows, int(rows.max(initial=-1)) + 1)
    sums = np.bincount(rows, weights=losses, minlength=num_rows)
    counts = np.bincount(rows, weights=dataset.target_counts, minlength=num_rows)
    return tuple((float(nll), int(count)) for nll, count in zip(sums, counts, strict=True))


class _ExampleLoss(TokenLoss):
    """The training loss, with each example's share of it kept apart."""

    def of_each(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of each example of a batch (B), in float64: sums of thousands stay exact enough."""
        written: list[Tensor] = []
        handle = self.model.register_forward_hook(lambda _module, _args, output: written.append(output.logits))
        try:
            self(**batch)
        finally:
            handle.remove()
        labels_BT, positions_N = batch["labels"], batch["positions"]
        (logits,) = written
        if logits.dim() == 3:  # a model whose head is no module of its own
            logits = logits.flatten(0, 1).index_select(0, positions_N)
        targets_N = labels_BT.flatten().index_select(0, positions_N + (0 if self.seq2seq else 1))
        nll_N = F.cross_entropy(logits.float(), targets_N, reduction="none").double()
        num_rows, num_places = labels_BT.shape
        return nll_N.new_zeros(num_rows).index_add(0, positions_N // num_places, nll_N)
