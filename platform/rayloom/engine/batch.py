"""A step's plan as tensors.

Shape letters: T tokens of the step, S sequences, R rows whose logits are wanted, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from rayloom.engine.cache import AttentionView


@dataclass(frozen=True)
class EncodeBatch:
    """Prompts that a seq2seq model's encoder reads in this step.

    Attributes:
        prompts: Token ids of each.
        slots_T: int64: where the cross-attention keys and values of all their tokens go, prompt after prompt:
            block * BLOCK + place in the block.
        adapters: Adapter index of each prompt, -1 for none.
    """

    prompts: tuple[tuple[int, ...], ...]
    slots_T: torch.Tensor
    adapters: tuple[int, ...]


@dataclass(frozen=True)
class ReadBatch:
    """Some encoder layers of one long prompt.

    Attributes:
        batch: The prompt.
        first: The first layer.
        end: The last layer + 1; keys and values are written when it is the encoder's.
        memory: What the runner keeps between a prompt's steps; the same dict for all of them, empty at first.
    """

    batch: EncodeBatch
    first: int
    end: int
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepBatch:
    """What a runner computes in one step: prompts and single tokens of many sequences, laid end to end.

    Attributes:
        tokens_T: int64 token ids.
        positions_T: int64 positions in their sequences.
        slots_T: int64: where each token's keys and values go: block * BLOCK + place in the block.
        view: Self-attention.
        logit_rows_R: int64: rows of T whose logits are wanted, ascending: a span's last token, before it those that
            score its prompt.
        adapters_T: int64 adapter index of each token, -1 for none; None where no row has an adapter.
        encode: Prompts to encode before the decoder runs, if any.
        cross_view: Seq2seq: cross-attention (not causal).
        reading: A long prompt to go on encoding before the decoder runs, if any.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    view: AttentionView
    logit_rows_R: torch.Tensor
    adapters_T: torch.Tensor | None = None
    encode: EncodeBatch | None = None
    cross_view: AttentionView | None = None
    reading: ReadBatch | None = None
