"""Small operators between the layers: in C++ on a CPU that can build them, in plain torch elsewhere.

Each takes and gives float32. The functions ``…_torch`` are the plain paths, on any device.

Shape letters: T tokens of the step, I features, H heads, D head size, R rotated features of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rayloom.engine.kernels.library import native

__all__ = [
    "apply_masks",
    "available",
    "gelu_new",
    "gelu_new_mul",
    "gelu_new_mul_torch",
    "gelu_new_torch",
    "rms_norm",
    "rms_norm_torch",
    "rope",
    "rope_torch",
    "silu_mul",
    "silu_mul_torch",
]


def apply_masks(scores_RV: torch.Tensor, rows: npt.NDArray[np.int64], masks: Sequence[npt.NDArray[np.uint32]]) -> bool:
    """Set scores of some rows to -inf IN PLACE where their masks have no bit.

    Args:
        scores_RV: float32, values of a row end to end.
        rows: Which.
        masks: Of each of these rows: token t is allowed where bit t % 32 of word t // 32 is set.

    Returns:
        Whether it is done: False where only the caller's plain path can do it.
    """
    library, width = native(), scores_RV.shape[1]
    if library is None or not scores_RV.is_cpu or scores_RV.dtype is not torch.float32 or scores_RV.stride(1) != 1:
        return False
    words = [np.ascontiguousarray(mask, dtype=np.uint32) for mask in masks]
    assert all(32 * len(mask) >= width for mask in words)
    pointers = np.array([mask.ctypes.data for mask in words], dtype=np.uintp)
    places = np.ascontiguousarray(rows, dtype=np.int64)
    target = scores_RV.data_ptr(), scores_RV.stride(0), places.ctypes.data, pointers.ctypes.data
    library.apply_masks(*target, len(words), width)
    return True


def available() -> bool:
    """Whether the C++ kernels are built and in use (on CPU tensors)."""
    return native() is not None


def rms_norm(
    x_TI: torch.Tensor, weight_I: torch.Tensor, eps: float, residual_TI: torch.Tensor | None = None
) -> torch.Tensor:
    """Root mean square norm (Zhang and Sennrich, 2019), T5's layer norm too: x / sqrt(mean(x^2) + eps) * weight.

    Args:
        x_TI: Contiguous. If a residual is given it is added to ``x_TI`` IN PLACE first.
        weight_I: float32.
        eps: Added to the mean square.
        residual_TI: Contiguous, or None.

    Returns:
        A new contiguous tensor.
    """
    library = native()
    if library is None or not x_TI.is_cpu:
        return rms_norm_torch(x_TI, weight_I, eps, residual_TI)
    assert x_TI.is_contiguous()
    assert x_TI.dtype is torch.float32
    num_rows, width = x_TI.shape
    out_TI = torch.empty_like(x_TI)
    residual = None if residual_TI is None else residual_TI.data_ptr()
    library.rms_norm(out_TI.data_ptr(), x_TI.data_ptr(), residual, weight_I.data_ptr(), num_rows, width, eps)
    return out_TI


def rms_norm_torch(
    x_TI: torch.Tensor, weight_I: torch.Tensor, eps: float, residual_TI: torch.Tensor | None = None
) -> torch.Tensor:
    """`rms_norm` in plain torch."""
    if residual_TI is not None:
        x_TI += residual_TI
    return x_TI * torch.rsqrt(x_TI.square().mean(-1, keepdim=True) + eps) * weight_I


def rope(x_THD: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> None:
    """Rotate queries or keys by their positions IN PLACE (Su et al., 2021), first half against second half.

    Args:
        x_THD: Heads end to end; rows may be a view into a wider tensor, such as the query and key heads of a fused
            projection. Only the first R features of a head are rotated.
        cos_TR: Contiguous float32 ``(T, R)``, both halves alike, attention scaling included.
        sin_TR: Likewise.
    """
    library = native()
    if library is None or not x_THD.is_cpu:
        rope_torch(x_THD, cos_TR, sin_TR)
        return
    num_tokens, num_heads, dim = x_THD.shape
    assert x_THD.stride(1) == dim, "heads must lie end to end"
    assert cos_TR.is_contiguous()
    assert sin_TR.is_contiguous()
    pointers = x_THD.data_ptr(), x_THD.stride(0), cos_TR.data_ptr(), sin_TR.data_ptr()
    library.rope(*pointers, num_tokens, num_heads, dim, cos_TR.shape[1])


def rope_torch(x_THD: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> None:
    """`rope` in plain torch."""
    part_THR = x_THD[..., : cos_TR.shape[1]]
    first, second = part_THR.chunk(2, dim=-1)
    turned_THR = torch.cat((-second, first), dim=-1)
    part_THR.copy_(part_THR * cos_TR[:, None] + turned_THR * sin_TR[:, None])


def silu_mul(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the features, times the second half: ``(T, 2 I)`` contiguous to a new ``(T, I)``."""
    return _gated("silu_mul", silu_mul_torch, gate_up_TI)


def _gated(function: str, plain: Callable[[torch.Tensor], torch.Tensor], gate_up_TI: torch.Tensor) -> torch.Tensor:
    library = native()
    if library is None or not gate_up_TI.is_cpu:
        return plain(gate_up_TI)
    assert gate_up_TI.is_contiguous()
    num_rows, width = gate_up_TI.shape[0], gate_up_TI.shape[1] // 2
    out_TI = torch.empty(num_rows, width)
    getattr(library, function)(out_TI.data_ptr(), gate_up_TI.data_ptr(), num_rows, width)
    return out_TI


def silu_mul_torch(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """`silu_mul` in plain torch."""
    gate, up = gate_up_TI.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_new_mul(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """GELU (tanh form) of the first half of the features, times the second half: gated T5."""
    return _gated("gelu_new_mul", gelu_new_mul_torch, gate_up_TI)


def gelu_new_mul_torch(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """`gelu_new_mul` in plain torch."""
    gate, up = gate_up_TI.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def gelu_new(x_TI: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form (GPT-2's), IN PLACE on a contiguous tensor; returns it."""
    library = native()
    if library is None or not x_TI.is_cpu:
        return gelu_new_torch(x_TI)
    assert x_TI.is_contiguous()
    library.gelu_new(x_TI.data_ptr(), x_TI.numel())
    return x_TI


def gelu_new_torch(x_TI: torch.Tensor) -> torch.Tensor:
    """`gelu_new` in plain torch."""
    return x_TI.copy_(functional.gelu(x_TI, approximate="tanh"))
