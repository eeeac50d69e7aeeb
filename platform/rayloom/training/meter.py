"""Counts tokens, seconds and loss between log lines without waiting for the device at every step."""

from __future__ import annotations

import math
import time

import psutil
import torch
from torch import Tensor

from rayloom.errors import DivergedError
from rayloom.training import distributed
from rayloom.training.checkpoint import Progress, Window
from rayloom.training.records import StepRecord


class Meter:
    """Speed and loss since the last record.

    Args:
        device: Where losses are summed.
        total_steps: Steps of the whole run.
        start: Where this process took up the run; what it had not told yet is told with the next record.
    """

    def __init__(self, device: torch.device, total_steps: int, *, start: Progress) -> None:
        self._device, self._total_steps = device, total_steps
        window, rank = start.window, distributed.rank()
        self._loss = torch.tensor(window.loss_of(rank, distributed.world_size()), device=device)
        self._targets, self._tokens = window.targets, window.tokens if rank == 0 else 0
        self._seen_tokens, self._train_s = start.tokens - window.tokens, start.train_s - window.seconds
        self._recorded_step = start.step - window.steps
        self._clock = time.perf_counter() - window.seconds

    def add(self, loss: Tensor, *, tokens: int) -> None:
        """Count a micro-batch: its summed loss and its real tokens."""
        self._loss += loss
        self._tokens += tokens

    def add_targets(self, targets: int) -> None:
        """Count the target tokens of a global batch."""
        self._targets += targets

    def record(
        self, progress: Progress, steps_per_epoch: int, learning_rate: float, norm: Tensor | float
    ) -> StepRecord | None:
        """Figures since the last record, over all ranks; starts anew. Collective.

        Returns:
            None where every step since then was skipped: there is no loss to tell, and counting goes on.

        Raises:
            DivergedError: The loss is not finite any more.
        """
        if not self._targets:
            return None
        # One collective: each rank's memory has a place of its own in the sum.
        memory = [0.0] * distributed.world_size()
        memory[distributed.rank()] = float(memory_held(self._device))
        sums = distributed.sum_over_ranks([float(self._loss), float(self._tokens), *memory], self._device)
        loss, tokens, memory = sums[0], sums[1], sums[2:]
        now = time.perf_counter()
        elapsed, steps = max(now - self._clock, 1e-9), progress.step - self._recorded_step
        mean = loss / self._targets
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss is {mean} by step {progress.step}: lower training.learning_rate, "
                "set training.max_grad_norm, or use bf16 instead of fp16"
            )
        self._seen_tokens += int(tokens)
        self._train_s += elapsed
        self._clock, self._recorded_step = now, progress.step
        self._loss.zero_()
        self._tokens = self._targets = 0
        return StepRecord(
            step=progress.step,
            total_steps=self._total_steps,
            epoch=progress.epoch + progress.batch / steps_per_epoch,
            loss=mean,
            learning_rate=learning_rate,
            grad_norm=float(norm),
            tokens_per_s=tokens / elapsed,
            eta_s=(self._total_steps - progress.step) * elapsed / max(1, steps),
            memory_bytes=int(max(memory)),
        )

    def updated(self, progress: Progress) -> Progress:
        """The progress with tokens and seconds up to now, and what no record has told yet. Collective."""
        window = self._window(progress.step - self._recorded_step)
        tokens, seconds = self._seen_tokens + window.tokens, self._train_s + window.seconds
        return progress.moved(tokens=tokens, train_s=seconds, window=window)

    def _window(self, steps: int) -> Window:
        losses = [0.0] * distributed.world_size()
        losses[distributed.rank()] = float(self._loss)
        tokens, *losses = distributed.sum_over_ranks([float(self._tokens), *losses], self._device)
        seconds = time.perf_counter() - self._clock if steps else 0.0
        return Window(steps, tuple(losses), self._targets, int(tokens), seconds)

    def restart(self) -> None:
        """Leave out the time since the last record, such as an evaluation's."""
        self._clock = time.perf_counter()


def memory_held(device: torch.device) -> int:
    """Bytes that this process holds: the peak of tensors on its GPU, or what is resident in host memory now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
