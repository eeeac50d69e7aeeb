"""DeepSpeed: ZeRO 0-3 (Rajbhandari et al., 2020), with optional offload, on GPUs and on CPUs (gloo)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayloom.config import RunConfig
from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.backends import Batch
from rayloom.training.loss import TokenLoss
from rayloom.training.optimizer import build_optimizer, set_learning_rate

_TAG = "step"


def deepspeed_config(config: RunConfig, *, on_gpu: bool) -> dict[str, Any]:
    """The DeepSpeed configuration that a run config means.

    Optimizer and schedule are not in it: both are ours and the same for every backend.
    """
    training, workers = config.training, config.distributed
    zero: dict[str, Any] = {"stage": workers.stage, "overlap_comm": on_gpu and workers.stage in (1, 2, 3)}
    if workers.offload != "none":
        target: dict[str, Any] = {"device": workers.offload, "pin_memory": on_gpu}
        if workers.nvme_path:
            target["nvme_path"] = workers.nvme_path
        zero["offload_optimizer"] = target
        if workers.stage == 3:
            zero["offload_param"] = target
    return {
        "train_micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": training.bf16},
        "fp16": {"enabled": training.fp16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class DeepSpeedBackend:
    """A DeepSpeed engine behind the `Backend` protocol.

    Args:
        module: Loss module with the model to train.
        config: The run.
        device: CPU or this worker's GPU.
    """

    def __init__(self, module: TokenLoss, config: RunConfig, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self.device, self._config = device, config
        offload = config.distributed.offload != "none"
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, config.training, device, offload=offload),
            config=deepspeed_config(config, on_gpu=device.type == "cuda"),
        )
        self.module: TokenLoss = self._engine.module

    def loss(self, batch: Batch) -> Tensor:
        """See `Backend.loss`."""
        with torch.no_grad():
            loss: Tensor = self._engine(**batch)
        return loss

    def backward(self, batch: Batch, *, scale: float, is_last: bool) -> Tensor:
        """See `Backend.backward`. DeepSpeed itself counts micro-batches to find the last one."""
        loss: Tensor = self._engine(**batch)
        # Our scale already divides by the global batch, so DeepSpeed must not divide by the accumulation.
        self._engine.backward(loss * scale, scale_wrt_gas=False)
        if not is_last:
            self._engine.step()
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor | float:
        """See `Backend.update`."""
        set_learning_rate(self._engine.optimizer, learning_rate)
        self._engine.step()
        norm: Tensor | float | None = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else norm

    def trained_weights(self) -> dict[str, Tensor]:
        """See `Backend.trained_weights`."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensor] = {}
        for name, parameter in self.module.model.named_parameters():
            if not parameter.requires_grad:
                continue
            full = safe_get_full_fp32_param(parameter)  # collective: every rank takes part
            if distributed.rank() == 0:
                # Stage 0 in fp32 keeps no second copy: the parameter itself is the whole weight.
                kept = parameter if full is None else full
                weights[name] = kept.detach().reshape(_full_shape(parameter)).float().cpu().clone()
        return weights

    def save(self, folder: Path) -> None:
        """See `Backend.save`."""
        self._engine.save_checkpoint(str(folder / "deepspeed"), _TAG, exclude_frozen_parameters=self._is_partial)

    def load(self, folder: Path) -> None:
        """See `Backend.load`.

        Raises:
            TrainingError: DeepSpeed found no checkpoint in the folder.
        """
        path, _ = self._engine.load_checkpoint(
            str(folder / "deepspeed"),
            _TAG,
            load_module_strict=not self._is_partial,
            load_lr_scheduler_states=False,
        )
        if path is None:
            raise TrainingError(f"{folder} holds no DeepSpeed checkpoint")

    @property
    def _is_partial(self) -> bool:
        return self._config.lora is not None


def _full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise TrainingError(
            f"the DeepSpeed backend is not installed ({error}); install deepspeed, or set distributed.backend: plain"
        ) from error
    if device.type == "cpu":
        # Otherwise initialising compiles a shared-memory collective (a minute, and a compiler) that only
        # inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return deepspeed
