"""DeepSpeed: ZeRO 0-3 (Rajbhandari et al., 2020), with optional offload, on GPUs and on CPUs (gloo)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayloom.config import RunConfig
from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.backends import PLAIN_STATE, weighted
from rayloom.training.batches import Batch
from rayloom.training.checkpoint import Write, save_weights
from rayloom.training.deepspeed_import import import_deepspeed
from rayloom.training.deepspeed_loading import Layout, fill_engine, write_global_state
from rayloom.training.lone_zero import spare_copies
from rayloom.training.loss import TokenLoss
from rayloom.training.optimizer import build_optimizer, parameter_names, set_learning_rate
from rayloom.training.universal import MODEL_PREFIX, from_deepspeed, from_torch, read_state, universal_folder

_FOLDER, _TAG = "deepspeed", "step"
_LONE_BUCKET = 1_000_000
"""Elements; DeepSpeed copies only smaller gradients together."""


def deepspeed_config(config: RunConfig, *, on_gpu: bool, num_workers: int) -> dict[str, Any]:
    """The DeepSpeed configuration that a run config means.

    Optimizer and schedule are not in it: both are ours and the same for every backend.

    Args:
        config: The run.
        on_gpu: Whether workers have GPUs.
        num_workers: How many there are, which may be another number than the config's.
    """
    training, workers = config.training, config.distributed
    zero: dict[str, Any] = {"stage": workers.stage, "overlap_comm": on_gpu and workers.stage in (1, 2, 3)}
    if num_workers == 1 and workers.stage in (1, 2) and workers.offload == "none":
        # Nothing travels: large gradients stay where they are, and none is divided by the number of processes.
        zero |= {"reduce_bucket_size": _LONE_BUCKET, "reduce_scatter": False}
    if workers.offload != "none":
        target: dict[str, Any] = {"device": workers.offload, "pin_memory": on_gpu}
        if workers.nvme_path:
            target["nvme_path"] = workers.nvme_path
        zero["offload_optimizer"] = target
        if workers.stage == 3:
            zero["offload_param"] = target
    return {
        "train_micro_batch_size_per_gpu": training.batch_size,
        # Only a hint: `DeepSpeedBackend` says itself which micro-batch is a step's last one.
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        # The check is a pass over all gradients, before DeepSpeed's own pass for the norm. Only who skips needs to know
        # before the update; who stops learns it from the norm (see `FiniteWatch`).
        "bf16": {"enabled": training.bf16, "check_grad_overflow": training.non_finite == "skip"},
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
        on_gpu = device.type == "cuda"
        deepspeed = import_deepspeed(on_gpu=on_gpu)
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
        self.device, self._config = device, config
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, config.training, device, offload=self._offloads),
            config=deepspeed_config(config, on_gpu=on_gpu, num_workers=distributed.world_size()),
        )
        self.module: TokenLoss = self._engine.module
        if not on_gpu and self._is_lone_half and config.distributed.stage == 1:
            spare_copies(self._engine.optimizer, bucket=_LONE_BUCKET)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """See `Backend.autocast`. Weights are in half precision themselves."""
        return contextlib.nullcontext()

    def loss(self, batch: Batch) -> Tensor:
        """See `Backend.loss`."""
        with torch.no_grad():
            loss: Tensor = self._engine(**batch)
        return loss

    def backward(self, batch: Batch, *, scale: float, is_last: bool) -> Tensor:
        """See `Backend.backward`."""
        # The number of micro-batches varies (last batch of an epoch, other workers after a resume), so DeepSpeed's
        # own counting is overruled.
        self._engine.set_gradient_accumulation_boundary(is_last)
        loss: Tensor = self._engine(**batch)
        # Our scale already divides by the global batch, so DeepSpeed must not divide by the accumulation.
        self._engine.backward(weighted(loss, scale), scale_wrt_gas=False)
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor | float:
        """See `Backend.update`. From stage 1 on DeepSpeed itself leaves out updates that are not finite."""
        set_learning_rate(self._engine.optimizer, learning_rate)
        plain_norm = self._norm_of_plain_gradients()
        if plain_norm is not None and self._skips and not torch.isfinite(plain_norm):
            self._engine.zero_grad()
            return plain_norm
        self._engine.step()
        return plain_norm if plain_norm is not None else _honest(self._engine.get_global_grad_norm())

    def _norm_of_plain_gradients(self) -> Tensor | None:
        """Stage 0 in float32 leaves the optimizer unwrapped, and DeepSpeed then knows no norm."""
        if self._config.distributed.stage != 0 or self._config.training.precision != "fp32":
            return None
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _weights(self) -> dict[str, Tensor]:
        """Whole trained weights in float32 on the CPU, by name. Collective; empty on ranks above 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self._masters()
        weights: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            # Of a stage that shards, this is a collective: every rank takes part.
            full = safe_get_full_fp32_param(parameter) if masters is None else masters[name]
            if distributed.rank() == 0:
                whole = full.detach().reshape(_full_shape(parameter)).float().cpu().clone()
                weights[name.removeprefix(MODEL_PREFIX)] = whole
        return weights

    def save(self, folder: Path) -> tuple[Write, ...]:
        """See `Backend.save`. DeepSpeed's own saving is one for all ranks and waits for its files."""
        weights = self._weights()
        if distributed.rank() == 0:
            save_weights(weights, folder)
        own = folder / _FOLDER
        self._engine.save_checkpoint(str(own), _TAG, exclude_frozen_parameters=self._is_partial)
        if distributed.rank() == 0:
            Layout.of(self._config).write(own)
        return ()

    def load(self, folder: Path) -> None:
        """See `Backend.load`. Checkpoints of other workers, stages and backends are converted on the way.

        Raises:
            TrainingError: The folder holds no checkpoint, or one that cannot be converted.
        """
        own = folder / _FOLDER
        if not (own.exists() or (folder / PLAIN_STATE).exists()):
            raise TrainingError(f"{folder} holds neither a DeepSpeed checkpoint nor a plain one")
        written_by = Layout.read(own) if own.exists() else None
        if written_by == Layout.of(self._config):
            self._load_same(own)
            return
        with universal_folder(lambda place: self._convert(folder, place, written_by)) as place:
            fill_engine(self._engine, place, self._masters(), integer_steps=self._offloads)

    def _load_same(self, own: Path) -> None:
        path, _ = self._engine.load_checkpoint(
            str(own), _TAG, load_module_strict=not self._is_partial, load_lr_scheduler_states=False
        )
        if path is None:
            raise TrainingError(f"{own} holds no DeepSpeed checkpoint")

    def _convert(self, folder: Path, place: Path, written_by: Layout | None) -> None:
        module = self.module
        if written_by is None:
            state = torch.load(folder / PLAIN_STATE, map_location="cpu", weights_only=True)
            from_torch(state["optimizer"], place, module=module, weights=folder)
        else:
            convert_deepspeed(folder, place, module, self.device)
        if self._config.distributed.stage > 0:
            step = read_state(place, parameter_names(module)[0])["step"]
            write_global_state(self._engine, place, step=step)

    def _masters(self) -> dict[str, Tensor] | None:
        """Stage 0: the float32 tensors that the optimizer updates, by name."""
        if self._config.distributed.stage != 0:
            return None
        if self._config.training.precision == "fp32":
            return {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        flat = [master for group in self._engine.optimizer.fp32_groups for master in group]
        return dict(zip(parameter_names(self.module), flat, strict=True))

    @property
    def _skips(self) -> bool:
        return self._config.training.non_finite == "skip"

    @property
    def _offloads(self) -> bool:
        return self._config.distributed.offload != "none"

    @property
    def _is_lone_half(self) -> bool:
        return distributed.world_size() == 1 and self._config.training.precision != "fp32" and not self._offloads

    @property
    def _is_partial(self) -> bool:
        return self._config.lora is not None


def convert_deepspeed(folder: Path, place: Path, module: TokenLoss, device: torch.device) -> None:
    """Take the DeepSpeed checkpoint in a folder apart, see `rayloom.training.universal`.

    Args:
        folder: The checkpoint.
        place: A universal folder to be.
        module: Names the parameters.
        device: Of this process.

    Raises:
        TrainingError: The folder holds none.
    """
    stage = Layout.read(folder / _FOLDER).stage
    import_deepspeed(on_gpu=device.type == "cuda")
    from_deepspeed(folder / _FOLDER / _TAG, place, module=module, weights=folder, stage=stage)


def _honest(norm: Tensor | float | None) -> Tensor | float:
    """A norm that is nan where it is not finite: DeepSpeed says None before its first one, and -1 for nan and inf."""
    if norm is None:
        return float("nan")
    return (
        torch.where(norm >= 0, norm, torch.nan) if isinstance(norm, Tensor) else (norm if norm >= 0 else float("nan"))
    )


def _full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
