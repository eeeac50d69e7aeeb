"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rayloom.config import RunConfig
from rayloom.data import EncodedDataset, GlobalBatch, plan_epoch
from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.batches import to_device
from rayloom.training.checkpoint import (
    Progress,
    load_progress,
    load_rng,
    save_progress,
    save_rng,
    save_weights,
    seed_everything,
)
from rayloom.training.meter import Meter
from rayloom.training.records import EvalRecord, Reporter, Validator
from rayloom.training.schedule import learning_rate_at
from rayloom.training.validation import token_loss


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Attributes:
        config: The run.
        train: Encoded train rows.
        validation: Encoded validation rows; may be empty.
        pad_token_id: Fills up rows of a batch.
        validator: Generates and scores; None for loss only.
    """

    config: RunConfig
    train: EncodedDataset
    validation: EncodedDataset
    pad_token_id: int
    validator: Validator | None = None

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Input tokens of each train row."""
        return self.train.lengths

    @cached_property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Target tokens of each train row."""
        return self.train.target_counts

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the train rows."""
        training = self.config.training
        rows_per_step = training.batch_size * training.gradient_accumulation_steps * distributed.world_size()
        return math.ceil(len(self.train) / rows_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.steps_per_epoch * self.config.training.num_epochs
        return min(steps, self.config.training.max_steps or steps)

    def plan(self, epoch: int) -> Sequence[GlobalBatch]:
        """The batches of an epoch: a pure function of data, seed, epoch and world size."""
        training = self.config.training
        return plan_epoch(
            self.lengths,
            self.target_counts,
            batch_size=training.batch_size,
            accumulation=training.gradient_accumulation_steps,
            world_size=distributed.world_size(),
            seed=training.seed,
            epoch=epoch,
        )


def train(job: Job, backend: Backend, reporter: Reporter, *, resume_from: Path | None = None) -> Progress:
    """Train to the end, evaluating and checkpointing on the way.

    Args:
        job: Model-independent part of the run.
        backend: The model, its gradients and its optimizer.
        reporter: Takes progress, figures and checkpoints.
        resume_from: Folder of a checkpoint to go on from.

    Returns:
        Where training ended; its ``selection`` names the best step.

    Raises:
        TrainingError: The checkpoint does not fit, or the loss is no longer finite.
    """
    training, total = job.config.training, job.total_steps
    progress = _start(job, backend, resume_from)
    if training.eval_on_start and progress.step == 0:
        _evaluate(job, backend, reporter, progress)
    meter = Meter(backend.device, total, start=progress)
    while progress.step < total and not progress.selection.exhausted(training):
        plan = job.plan(progress.epoch)
        for batch in plan[progress.batch :]:
            learning_rate = learning_rate_at(progress.step, config=training, total_steps=total)
            norm = _step(job, backend, batch, learning_rate, meter)
            progress = progress.moved(step=progress.step + 1, batch=progress.batch + 1)
            at_end = progress.step == total or progress.batch == len(plan)
            if progress.step % training.logging_steps == 0 or at_end:
                record = meter.record(progress, len(plan), learning_rate, norm)
                if distributed.rank() == 0:
                    reporter.stepped(record)
            if _checkpoint_due(training.checkpoint_every_steps, progress.step) and not at_end:
                _checkpoint(meter.updated(progress), backend, reporter, metrics={})
            if progress.step == total:
                break
        if progress.batch == len(plan):
            progress = progress.moved(epoch=progress.epoch + 1, batch=0)
        if progress.step == total or progress.epoch % training.eval_every_epochs == 0:
            progress = _evaluate(job, backend, reporter, meter.updated(progress))
            _checkpoint(progress, backend, reporter, metrics=progress.metrics)
            meter.restart()
    return progress


def _start(job: Job, backend: Backend, resume_from: Path | None) -> Progress:
    backend.module.train()
    seed_everything(job.config.training.seed + 1000 * distributed.rank())
    if resume_from is None:
        return Progress(world_size=distributed.world_size())
    progress = load_progress(resume_from)
    progress.require_world_size(distributed.world_size())
    backend.load(resume_from)
    load_rng(resume_from, distributed.rank())
    return progress


def _step(job: Job, backend: Backend, batch: GlobalBatch, learning_rate: float, meter: Meter) -> torch.Tensor | float:
    # Gradients are averaged over ranks; times the ranks and over the batch's target tokens that makes the mean
    # per token of the global batch, however its rows are spread.
    scale = distributed.world_size() / max(1, batch.num_targets)
    micros = batch.micro[distributed.rank()]
    for index, micro in enumerate(micros):
        tensors = to_device(job.train, micro, pad_token_id=job.pad_token_id, device=backend.device)
        weight = 0.0 if micro.is_filler else scale
        loss = backend.backward(tensors, scale=weight, is_last=index == len(micros) - 1)
        if not micro.is_filler:
            meter.add(loss, tokens=int(job.lengths[list(micro.rows)].sum()))
    meter.add_targets(batch.num_targets)
    return backend.update(learning_rate)


def _checkpoint_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _evaluate(job: Job, backend: Backend, reporter: Reporter, progress: Progress) -> Progress:
    """Loss over all validation rows, then the validator's figures; equal on all ranks."""
    if not len(job.validation):
        return progress.moved(metrics={})
    backend.module.eval()
    batch_size = job.config.training.batch_size
    loss = token_loss(backend, job.validation, batch_size=batch_size, pad_token_id=job.pad_token_id)
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    samples: tuple[dict[str, str], ...] = ()
    if job.validator is not None:
        validation = job.validator(backend.module.model)
        metrics, samples = metrics | validation.metrics, validation.samples
    backend.module.train()
    training = job.config.training
    selection = progress.selection.after(metrics[training.metric_for_best], step=progress.step, config=training)
    if distributed.rank() == 0:
        reporter.evaluated(EvalRecord(progress.step, progress.epoch, metrics, samples))
    return progress.moved(metrics=metrics, selection=selection)


def _checkpoint(progress: Progress, backend: Backend, reporter: Reporter, *, metrics: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory(prefix="rayloom-checkpoint-") as name:
        folder = Path(name)
        weights = backend.trained_weights()
        backend.save(folder)
        save_rng(folder, distributed.rank())
        if distributed.rank() == 0:
            save_weights(weights, folder)
            save_progress(progress, folder)
        reporter.checkpoint(folder, progress, metrics)
