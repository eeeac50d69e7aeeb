"""ZeRO 1 of one process on a CPU: gradients go into float32 at once, without the copies that partitions would need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def spare_copies(optimizer: Any, *, bucket: int) -> None:
    """Let DeepSpeed's ZeRO 1 optimizer of one process take gradients from where backward left them.

    DeepSpeed copies each gradient into a partition, those into one flat tensor, and this one into float32. With one
    process there is one partition, and the first two copies only cost time. The values are the same.

    Args:
        optimizer: A ``DeepSpeedZeroOptimizer`` of stage 1 in half precision on a CPU, in a group of one.
        bucket: Its ``reduce_bucket_size``: smaller gradients lie in a buffer that is used again, and must be copied.
    """
    copy = optimizer.copy_grads_in_partition

    def copy_small(param: Tensor, *rest: Any) -> None:
        if param.numel() <= bucket:
            copy(param, *rest)

    optimizer.copy_grads_in_partition = copy_small
    optimizer.flatten_dense_tensors_aligned = _flat_in_float32


def _flat_in_float32(tensors: Sequence[Tensor], alignment: int) -> Tensor:
    """One tensor of all elements, with zeros up to a multiple of the alignment."""
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.empty(-(-sum(sizes) // alignment) * alignment, device=tensors[0].device)
    start = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        flat[start : start + size] = tensor.reshape(-1)
        start += size
    flat[start:] = 0
    return flat
