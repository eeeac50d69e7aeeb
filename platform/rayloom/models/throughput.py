"""How fast this machine trains: measured in a blink, on matrix products."""

from __future__ import annotations

import time

import torch

from rayloom.config import Precision

_SIZE = 1024
_LEAST_S = 0.2
_SHARE_REACHED = 0.35
"""Of the matrix-product rate, what training steps reach: measured with SmolLM2 + LoRA on a CPU (0.36)."""


def training_rate(precision: Precision, *, device: str = "cpu", num_threads: int | None = None) -> float:
    """Floating-point operations per second that one worker is likely to reach in training.

    Args:
        precision: Of the computation.
        device: ``cpu`` or ``cuda``.
        num_threads: Compute threads of a CPU worker; those of this process where not given.
    """
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        return _SHARE_REACHED * _matmul_rate(_DTYPES[precision], device)
    finally:
        torch.set_num_threads(before)


_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _matmul_rate(dtype: torch.dtype, device: str) -> float:
    size = _SIZE if device == "cpu" else 4 * _SIZE
    left = torch.ones(size, size, dtype=dtype, device=device)
    left @ left  # the first call sets libraries up
    _wait(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _LEAST_S:
        left @ left
        _wait(device)
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
