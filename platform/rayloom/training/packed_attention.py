"""Masks that keep packed rows apart, for encoder-decoders whose attention knows distances only (T5).

Decoders need none of ours: given positions that start anew and no mask, transformers finds the rows itself, for every
attention implementation and with sliding windows. Shape letters: B bins, Q queries, K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segments(position_ids_BT: Tensor) -> Tensor:
    """Number of the row that a token belongs to, from 1 (B, T); each padding token is a row of its own."""
    return (position_ids_BT == 0).cumsum(1)


def same_row(queries_BQ: Tensor, keys_BK: Tensor, *, causal: bool = False) -> Tensor:
    """Which keys a query may see: those of its own row (B, 1, Q, K), boolean.

    Args:
        queries_BQ: Segments of the queries.
        keys_BK: Segments of the keys.
        causal: And none that comes later.
    """
    seen_BQK = queries_BQ[:, :, None] == keys_BK[:, None, :]
    if causal:
        seen_BQK = seen_BQK.tril()
    return seen_BQK[:, None]


def as_scores(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to scores. Finite: a padding query that sees nothing must not become NaN."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
