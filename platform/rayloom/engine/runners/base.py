"""What the engine asks of a model, and the pieces that all families' forward passes are made of.

Shape letters: T tokens of a step, R rows whose logits are wanted, I input features, O output features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from rayloom.engine.adapters import LayerParts, LoraBank, StepRows
from rayloom.engine.batch import StepBatch
from rayloom.engine.cache import PagedCache
from rayloom.engine.linear import Linear, Precision


class Runner(Protocol):
    """A model that computes one step of many sequences over the paged cache.

    Attributes:
        cache: Keys and values (or what the model keeps instead) of all sequences.
        seq2seq: Whether prompts go through an encoder.
        vocab_size: Width of the logits.
        max_positions: Longest sequence; None if positions are relative.
        precision: Of the weights.
        encoder_layers: Pieces that reading a prompt can be cut into (`StepBatch.reading`); 1 if it cannot.
        lora: Adapters; None if the engine was opened without.
    """

    cache: PagedCache
    seq2seq: bool
    vocab_size: int
    max_positions: int | None
    precision: Precision
    encoder_layers: int
    lora: LoraBank | None

    @property
    def device(self) -> torch.device:
        """Where it computes; a step's tensors lie there."""
        ...

    def run(self, batch: StepBatch) -> torch.Tensor:
        """Compute a step.

        Returns:
            float32 logits ``(R, V)`` of the rows that the batch names.
        """
        ...


def cache_dtype(precision: Precision) -> torch.dtype:
    """What keys and values are held in."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


@dataclass(frozen=True)
class RowAdapters:
    """Which adapter each row of a step has.

    Attributes:
        bank: Holds them.
        adapters_T: int64 index of each row, -1 for none.
    """

    bank: LoraBank
    adapters_T: torch.Tensor  # noqa: N815

    @cached_property
    def rows(self) -> StepRows:
        """The same, as the bank takes it."""
        return StepRows(self.adapters_T)

    def select(self, rows_R: torch.Tensor) -> RowAdapters:
        """Those of some rows."""
        return RowAdapters(self.bank, self.adapters_T.index_select(0, rows_R))


def row_adapters(bank: LoraBank | None, adapters_T: torch.Tensor | None) -> RowAdapters | None:
    """The adapters of a step, None where no row has any."""
    return None if bank is None or adapters_T is None else RowAdapters(bank, adapters_T)


def logit_rows(
    batch: StepBatch, hidden_TI: torch.Tensor, mixed_TI: torch.Tensor, adapters: RowAdapters | None
) -> tuple[torch.Tensor, torch.Tensor, RowAdapters | None]:
    """The rows that go on after the last layer's attention: nothing behind it looks at others.

    Args:
        batch: Names them, in ascending order.
        hidden_TI: Residual stream.
        mixed_TI: The attention's output.
        adapters: Of all rows.
    """
    rows_R = batch.logit_rows_R
    if rows_R.numel() == hidden_TI.shape[0]:
        return hidden_TI, mixed_TI, adapters
    selected = None if adapters is None else adapters.select(rows_R)
    return hidden_TI.index_select(0, rows_R), mixed_TI.index_select(0, rows_R), selected


@dataclass(frozen=True)
class Projection:
    """One linear layer, or several with the same input side by side in one product.

    Attributes:
        linear: The product.
        parts: Of each layer in it: its path in the transformers model, by which adapters know it, and the first
            and last + 1 of its output features.
    """

    linear: Linear
    parts: LayerParts

    def __call__(self, x_TI: torch.Tensor, adapters: RowAdapters | None = None) -> torch.Tensor:
        """A new ``(T, O)`` of a contiguous ``(T, I)``, adapters included."""
        y_TO = self.linear(x_TI)
        if adapters is not None:
            adapters.bank.add(self.parts, x_TI, y_TO, adapters.rows)
        return y_TO
