"""Cross-entropy that holds no second copy of the logits.

Shape letters: N target tokens, C of them at a time, V vocabulary.

The logits are most of what short rows make: with a vocabulary of 50,000, a token's are a hundred times its hidden
state. PyTorch's own function keeps them in float32, their logarithmic softmax, its gradient, and that in float32 too;
here only the logits as the head made them are kept, and everything else is made for a few tokens at a time, in float32
and in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_VALUES = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits that are looked at together: what a core's cache holds; on a GPU, what keeps it busy."""


def summed_likelihood(logits_NV: Tensor, targets_N: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of the targets, summed over them.

    Args:
        logits_NV: Of any floating type.
        targets_N: Ids; none is to be ignored.
        label_smoothing: Share of the target mass that is spread over the vocabulary.

    Returns:
        Scalar, float32.
    """
    loss: Tensor = _Likelihood.apply(logits_NV, targets_N, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float) -> Tensor:
        normalisers_N = torch.empty(len(targets_N), dtype=torch.float32, device=logits_NV.device)
        losses_N = torch.empty_like(normalisers_N)
        for part in _parts(logits_NV):
            logits_CV, targets_C1 = logits_NV[part].float(), targets_N[part, None]
            normalisers_N[part] = logits_CV.logsumexp(1)
            picked_C = logits_CV.gather(1, targets_C1).squeeze(1)
            if smoothing:
                picked_C = (1 - smoothing) * picked_C + smoothing * logits_CV.mean(1)
            losses_N[part] = normalisers_N[part] - picked_C
        ctx.save_for_backward(logits_NV, targets_N, normalisers_N)
        ctx.smoothing = smoothing
        return losses_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        """Probabilities less what they should be, times the gradient of the loss."""
        logits_NV, targets_N, normalisers_N = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV)
        hit = (ctx.smoothing - 1) * scale
        for part in _parts(logits_NV):
            # A cast makes a copy of its own, float32 logits do not.
            values_CV = logits_NV[part].to(torch.float32, copy=True)
            values_CV.sub_(normalisers_N[part, None]).exp_().mul_(scale)
            if ctx.smoothing:
                values_CV -= ctx.smoothing / logits_NV.shape[1] * scale
            values_CV.scatter_add_(1, targets_N[part, None], hit.expand(len(values_CV), 1))
            gradient_NV[part] = values_CV
        return gradient_NV, None, None


def _parts(logits_NV: Tensor) -> list[slice]:
    count, width = logits_NV.shape
    size = max(1, _VALUES.get(logits_NV.device.type, _VALUES["cuda"]) // max(1, width))
    return [slice(start, start + size) for start in range(0, count, size)]
