"""Log-probabilities and the largest scores of rows: in C++ on a CPU that can build it, in plain torch elsewhere.

Both take and give float32. Of equal values the one with the lowest place comes first.

Shape letters: R rows, V vocabulary, K best of each row.
"""

from __future__ import annotations

import torch

from rayloom.engine.kernels.library import native

MOST = 64
"""Best of a row that the kernel keeps in order. More are quicker to have by sorting."""
_LOWEST = torch.finfo(torch.float32).min


def log_softmax(logits_RV: torch.Tensor) -> torch.Tensor:
    """Log-probabilities ``(R, V)``, each row's bits independent of other rows. A row of nothing but -inf stays so."""
    library = native()
    if library is None or not logits_RV.is_cpu:
        return log_softmax_torch(logits_RV)
    logits_RV = logits_RV.contiguous()
    assert logits_RV.dtype is torch.float32
    out_RV = torch.empty_like(logits_RV)
    library.log_softmax(out_RV.data_ptr(), logits_RV.data_ptr(), *logits_RV.shape)
    return out_RV


def log_softmax_torch(logits_RV: torch.Tensor) -> torch.Tensor:
    """`log_softmax` in plain torch."""
    shifted_RV = logits_RV - logits_RV.amax(dim=1, keepdim=True).clamp(min=_LOWEST)
    # The peak alone adds 1. Not exp: torch's takes ten times as long where logits are -inf, if they are many.
    return shifted_RV - shifted_RV.exp().sum(dim=1, keepdim=True).clamp(min=1.0).log()


def largest_native(
    scores_RV: torch.Tensor, count: int, *, as_log_probs: bool = False
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The ``count`` largest values of each row, largest first, and their places, without ordering or copying a row.

    Args:
        scores_RV: Scores.
        count: At most V.
        as_log_probs: Scores are logits; the values are those of `log_softmax`, ranked as such, which is not made whole.

    Returns:
        ``(R, count)`` values and int64 places (of values -inf: 0); None where there is no kernel for it.
    """
    library = native()
    if library is None or not scores_RV.is_cpu or count > MOST:
        return None
    scores_RV = scores_RV.contiguous()
    assert scores_RV.dtype is torch.float32
    num_rows, width = scores_RV.shape
    assert count <= width
    values_RK = torch.empty(num_rows, count)
    places_RK = torch.empty(num_rows, count, dtype=torch.int64)
    pointers = values_RK.data_ptr(), places_RK.data_ptr(), scores_RV.data_ptr()
    library.largest_rows(*pointers, num_rows, width, count, as_log_probs)
    return values_RK, places_RK
