"""The optimizer: AdamW, with decay on matrices only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from rayloom.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, biases and norms do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the trained parameters in the order of `parameter_groups`, which numbers them in optimizer states."""
    # ZeRO-3 keeps the shape in ds_shape while a parameter is spread over the workers.
    sizes = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters() if p.requires_grad}
    return [name for name, size in sizes.items() if size >= 2] + [name for name, size in sizes.items() if size < 2]


def build_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device, *, offload: bool) -> Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) over the trainable parameters.

    Args:
        model: Model whose parameters with requires_grad are trained.
        config: Learning rate, betas, epsilon, decay.
        device: Where the parameters are; fused kernels on GPUs.
        offload: Take DeepSpeed's CPU kernel, which its offloading needs.
    """
    groups = parameter_groups(model, config.weight_decay)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: Optimizer = DeepSpeedCPUAdam(groups, **settings)
        return optimizer
    return AdamW(groups, **settings, fused=device.type in ("cuda", "cpu"))


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the rate of every parameter group; DeepSpeed's wrappers have groups of the same form."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
