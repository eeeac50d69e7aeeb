"""Counts tokens, seconds and loss between log lines without waiting for the device at every step."""

from __future__ import annotations

import math
import time

import psutil
import torch
from torch import Tensor

from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.checkpoint import Progress
from rayloom.training.records import StepRecord


class Meter:
    """Speed and loss since the last record.

    Args:
        device: Where losses are summed.
        total_steps: Steps of the whole run.
        start: Where this process took up the run.
    """

    def __init__(self, device: torch.device, total_steps: int, *, start: Progress) -> None:
        self._device, self._total_steps = device, total_steps
        self._loss = torch.zeros((), device=device)
        self._targets = self._tokens = 0
        self._seen_tokens, self._train_s = start.tokens, start.train_s
        self._recorded_step = start.step
        self._clock = time.perf_counter()

    def add(self, loss: Tensor, *, tokens: int) -> None:
        """Count a micro-batch: its summed loss and its real tokens."""
        self._loss += loss
        self._tokens += tokens

    def add_targets(self, targets: int) -> None:
        """Count the target tokens of a global batch."""
        self._targets += targets

    def record(
        self, progress: Progress, steps_per_epoch: int, learning_rate: float, norm: Tensor | float
    ) -> StepRecord:
        """Figures since the last record, over all ranks; starts anew. Collective.

        Raises:
            TrainingError: The loss is not finite any more.
        """
        # One collective: each rank's memory has a place of its own in the sum.
        memory = [0.0] * distributed.world_size()
        memory[distributed.rank()] = float(memory_held(self._device))
        sums = distributed.sum_over_ranks([float(self._loss), float(self._tokens), *memory], self._device)
        loss, tokens, memory = sums[0], sums[1], sums[2:]
        now = time.perf_counter()
        elapsed, steps = max(now - self._clock, 1e-9), progress.step - self._recorded_step
        mean = loss / max(1, self._targets)
        if not math.isfinite(mean):
            raise TrainingError(
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
        """The progress with tokens and seconds up to the last record."""
        return progress.moved(tokens=self._seen_tokens, train_s=self._train_s)

    def restart(self) -> None:
        """Leave out the time since the last record, such as an evaluation's."""
        self._clock = time.perf_counter()


def memory_held(device: torch.device) -> int:
    """Bytes that this process holds: the peak of tensors on its GPU, or what is resident in host memory now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
