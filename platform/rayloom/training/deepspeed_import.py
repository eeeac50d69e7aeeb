"""Importing DeepSpeed without what it would otherwise do first on a CPU."""

from __future__ import annotations

import os
from typing import Any

from rayloom.errors import TrainingError


def import_deepspeed(*, on_gpu: bool) -> Any:
    """The ``deepspeed`` module, ready for this kind of device.

    Raises:
        TrainingError: It is not installed.
    """
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise TrainingError(
            f"DeepSpeed is not installed ({error}); install deepspeed, or set distributed.backend: plain"
        ) from error
    if not on_gpu:
        # Otherwise initialising compiles a shared-memory collective (a minute, and a compiler) that only
        # inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # ZeRO would widen every gradient to float64 for the norm, which costs more than the norm does. In float32, as
        # on devices without float64, it is what PyTorch's clipping computes.
        deepspeed.accelerator.get_accelerator().is_fp64_supported = lambda: False
    return deepspeed
