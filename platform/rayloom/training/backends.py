"""How gradients are made and applied: plain PyTorch, or DeepSpeed (see `deepspeed_backend`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayloom.config import Precision, RunConfig
from rayloom.training import distributed
from rayloom.training.batches import Batch
from rayloom.training.checkpoint import Write, load_weights, save_weights
from rayloom.training.copies import Copies, is_small
from rayloom.training.frozen import cast_frozen_once
from rayloom.training.loss import TokenLoss
from rayloom.training.optimizer import build_optimizer, set_learning_rate
from rayloom.training.shared_update import shared_update

_HALVES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

PLAIN_STATE = "plain.pt"
"""File of a checkpoint with the plain backend's optimizer state."""


class Backend(Protocol):
    """One model being trained on this process, in step with the other ranks."""

    device: torch.device
    module: TokenLoss
    """The bare loss module; its ``model`` is the transformers or PEFT model."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """In what the module's forward pass is run."""

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss of a batch without gradients (for validation)."""

    def backward(self, batch: Batch, *, scale: float, is_last: bool) -> Tensor:
        """Add the gradients of ``scale x summed loss``; gradients are then averaged over ranks.

        Args:
            batch: Micro-batch on this backend's device.
            scale: Weight of the summed loss; 0 for a filler.
            is_last: Whether the optimizer step follows.

        Returns:
            The summed loss, detached.
        """

    def update(self, learning_rate: float) -> Tensor | float:
        """Clip, step, clear gradients; returns the gradient norm before clipping."""

    def save(self, folder: Path) -> tuple[Write, ...]:
        """Write trained weights and optimizer state. Collective. What is returned can be written later."""

    def load(self, folder: Path) -> None:
        """Put back what `save` kept. Collective."""


class PlainBackend:
    """Plain PyTorch: the reference that DeepSpeed is compared with.

    Weights stay in float32; bf16 and fp16 run under autocast. Gradients are averaged through shared memory where all
    ranks are CPUs of one machine, else by DistributedDataParallel.
    """

    def __init__(self, module: TokenLoss, config: RunConfig, device: torch.device) -> None:
        self.module, self.device, self._config = module.to(device), device, config
        self._half = _HALVES[config.training.precision]
        if self._half is not None:
            cast_frozen_once(self.module, self._half)
        self._optimizer = build_optimizer(self.module, config.training, device, offload=False)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half is torch.float16)
        self._copies = Copies()
        self._parallel: nn.Module = self.module
        several = distributed.world_size() > 1
        shares = several and device.type == "cpu" and not self._scaler.is_enabled()
        self._shared = shared_update(self.module, self._optimizer) if shares else None
        if several and self._shared is None:
            self._parallel = DistributedDataParallel(
                self.module,
                device_ids=_device_ids(device),
                gradient_as_bucket_view=True,  # else every gradient is copied into its bucket, and back
            )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """See `Backend.autocast`."""
        return contextlib.nullcontext() if self._half is None else torch.autocast(self.device.type, self._half)

    def loss(self, batch: Batch) -> Tensor:
        """See `Backend.loss`."""
        with torch.no_grad(), self.autocast():
            loss: Tensor = self.module(**batch)
        return loss

    def backward(self, batch: Batch, *, scale: float, is_last: bool) -> Tensor:
        """See `Backend.backward`."""
        with self._synchronised(is_last):
            with self.autocast():
                loss: Tensor = self._parallel(**batch)
            self._scaler.scale(weighted(loss, scale)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor | float:
        """See `Backend.update`."""
        set_learning_rate(self._optimizer, learning_rate)
        limit = self._config.training.max_grad_norm or float("inf")
        skips = self._config.training.non_finite == "skip"
        if self._shared is not None:
            return self._shared.update(learning_rate, max_norm=limit, skip_non_finite=skips)
        self._scaler.unscale_(self._optimizer)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, limit)
        # Asking waits for the device, so only those who want to skip pay for it.
        if not skips or torch.isfinite(norm):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> tuple[Write, ...]:
        """See `Backend.save`. Ranks are equal, so the first one's state is enough."""
        if distributed.rank() != 0:
            return ()
        weights, optimizer = self._weights(), self._optimizer.state_dict()
        state = {"optimizer": optimizer, "scaler": self._scaler.state_dict()}
        moments: dict[int, dict[str, Tensor]] = optimizer["state"]
        live = [*weights.values(), *(tensor for each in moments.values() for tensor in each.values())]
        if not is_small(live):
            save_weights(weights, folder)
            torch.save(state, folder / PLAIN_STATE)
            return ()
        copies = self._copies.take(live)
        copy = iter(copies)
        weights = {name: next(copy) for name in weights}
        optimizer["state"] = {index: {name: next(copy) for name in each} for index, each in moments.items()}

        def write(place: Path) -> None:
            save_weights(weights, place)
            torch.save(state, place / PLAIN_STATE)
            self._copies.give_back(copies)

        return (write,)

    def load(self, folder: Path) -> None:
        """See `Backend.load`. A DeepSpeed checkpoint is converted on the way."""
        if (folder / PLAIN_STATE).exists():
            self._load_plain(folder)
        else:
            self._load_deepspeed(folder)
        if self._shared is not None:
            self._shared.adopt()

    def _load_plain(self, folder: Path) -> None:
        from rayloom.models import load_trained_weights

        load_trained_weights(self.module.model, load_weights(folder))
        state = torch.load(folder / PLAIN_STATE, map_location=self.device, weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _load_deepspeed(self, folder: Path) -> None:
        from rayloom.training.deepspeed_backend import convert_deepspeed
        from rayloom.training.universal import fill_torch, universal_folder

        masters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        with universal_folder(lambda place: convert_deepspeed(folder, place, self.module, self.device)) as place:
            fill_torch(self._optimizer, masters, place)

    def _weights(self) -> dict[str, Tensor]:
        """Trained weights in float32, which training goes on changing."""
        named = self.module.model.named_parameters()
        return {name: p.detach().float() for name, p in named if p.requires_grad}

    @contextlib.contextmanager
    def _synchronised(self, is_last: bool) -> Iterator[None]:
        """Let gradients travel only with the last micro-batch of a step."""
        if is_last or not isinstance(self._parallel, DistributedDataParallel):
            yield
        else:
            with self._parallel.no_sync():
                yield


def weighted(loss: Tensor, scale: float) -> Tensor:
    """The loss times its weight; a loss that is not finite makes all gradients NaN, on every rank.

    An infinite loss may have finite gradients. With this, the gradient norm alone tells every rank, at no further cost,
    that some rank's loss was not finite.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), scale, torch.nan)


def _device_ids(device: torch.device) -> list[int] | None:
    return [device.index or 0] if device.type == "cuda" else None
