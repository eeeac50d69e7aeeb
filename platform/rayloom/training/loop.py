"""The training loop: one function, read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from rayloom.data import GlobalBatch
from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.batches import Batch
from rayloom.training.checkpoint import Part, Progress, save_progress, save_rng
from rayloom.training.compiled import compiled_layers
from rayloom.training.fragile import keep_fragile_in_fp32
from rayloom.training.job import Job
from rayloom.training.meter import Meter
from rayloom.training.packing_check import enable_packing
from rayloom.training.prefetch import Feeder
from rayloom.training.profiling import StepProfiler
from rayloom.training.records import EvalRecord, Reporter, StepRecord
from rayloom.training.resuming import start
from rayloom.training.safety import FiniteWatch, SpikeWatch, StepOutcome
from rayloom.training.schedule import learning_rate_at
from rayloom.training.scratch import scratch
from rayloom.training.validation import token_loss


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
        TrainingError: The checkpoint does not fit, the model cannot be packed, or (unless such steps are skipped)
            a loss or gradient is not finite.
    """
    progress = start(job, backend, resume_from)
    job = job.resumed(progress)
    training, total = job.config.training, job.total_steps
    _guard_fp16(job, backend, reporter)
    enable_packing(backend, training, job.train, job.pad_token_id)
    if training.eval_on_start and progress.step == 0:
        _evaluate(job, backend, reporter, progress)
    watch = FiniteWatch(backend.device, scaled=training.fp16, place=job.train.place)
    spikes = SpikeWatch(progress.trend)
    with (
        compiled_layers(job, backend, reporter),
        StepProfiler(reporter, backend.device, wanted=training.profile and distributed.rank() == 0) as profiler,
        Feeder(job, backend.device, backend.module.packing) as feeder,
    ):
        meter = Meter(backend.device, total, start=progress)
        while progress.step < total and not progress.selection.exhausted(training):
            plan = job.plan(progress.epoch)
            for batch, tensors in feeder.steps(plan[progress.batch :]):
                learning_rate = learning_rate_at(progress.step, config=training, total_steps=total)
                progress = progress.moved(step=progress.step + 1, batch=progress.batch + 1)
                outcome = _step(backend, batch, tensors, learning_rate, progress.step)
                _account(job, outcome, meter, watch, reporter)
                at_end = progress.step == total or progress.batch == len(plan)
                if progress.step % training.logging_steps == 0 or at_end:
                    watch.check()
                    record = meter.record(progress, len(plan), learning_rate, outcome.norm)
                    _report(record, watch, spikes, reporter)
                    progress = progress.moved(trend=spikes.state)
                if _checkpoint_due(training.checkpoint_every_steps, progress.step) and not at_end:
                    watch.check()
                    _checkpoint(meter.updated(progress), backend, reporter, metrics={})
                profiler.step()
                if progress.step == total:
                    break
            if progress.batch == len(plan):
                progress = progress.moved(epoch=progress.epoch + 1, batch=0)
            if progress.step == total or progress.epoch % training.eval_every_epochs == 0:
                progress = _evaluate(job, backend, reporter, meter.updated(progress))
                _checkpoint(progress, backend, reporter, metrics=progress.metrics)
                meter.restart()
            elif _checkpoint_due(training.checkpoint_every_steps, progress.step):
                _checkpoint(meter.updated(progress), backend, reporter, metrics={})
    return progress


def _guard_fp16(job: Job, backend: Backend, reporter: Reporter) -> None:
    if not job.config.training.fp16:
        return
    num_layers = keep_fragile_in_fp32(backend.module.model)
    if num_layers and distributed.rank() == 0:
        reporter.note(
            f"this model overflows in fp16, so {num_layers} of its layers compute in fp32: training.bf16 is safer"
        )


def _step(
    backend: Backend, batch: GlobalBatch, tensors: Iterator[Batch], learning_rate: float, step: int
) -> StepOutcome:
    # Gradients are averaged over ranks; times the ranks and over the batch's target tokens that makes the mean
    # per token of the global batch, however its rows are spread.
    scale = distributed.world_size() / max(1, batch.num_targets)
    micros = batch.micro[distributed.rank()]
    losses = []
    for index, (micro, inputs) in enumerate(zip(micros, tensors, strict=True)):
        weight = 0.0 if micro.is_filler else scale
        losses.append(backend.backward(inputs, scale=weight, is_last=index == len(micros) - 1))
    return StepOutcome(step, batch, tuple(losses), backend.update(learning_rate))


def _account(job: Job, outcome: StepOutcome, meter: Meter, watch: FiniteWatch, reporter: Reporter) -> None:
    """Count a step; one whose update was left out is named, and its loss does not count."""
    # Only `skip` looks at every step: the look waits for the device.
    skipped = job.config.training.non_finite == "skip" and not math.isfinite(float(outcome.norm))
    if skipped:
        note = watch.skipped(outcome)
        if note is not None and distributed.rank() == 0:
            reporter.note(note)
    else:
        watch.applied()
        watch.saw(outcome)
        meter.add_targets(outcome.batch.num_targets)
    for micro, loss in zip(outcome.micros, outcome.losses, strict=True):
        if not micro.is_filler:
            counted = torch.zeros_like(loss) if skipped else loss
            meter.add(counted, tokens=int(job.lengths[list(micro.rows)].sum()))


def _report(record: StepRecord | None, watch: FiniteWatch, spikes: SpikeWatch, reporter: Reporter) -> None:
    if record is None or distributed.rank() != 0:
        return
    reporter.stepped(replace(record, skipped_steps=watch.num_skipped))
    spike = spikes.add(record.loss, step=record.step)
    if spike is not None:
        reporter.note(spike)


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
    with scratch("checkpoint") as folder:
        later = backend.save(folder)
        save_rng(folder, distributed.rank())
        if distributed.rank() == 0:
            save_progress(progress, folder)
        reporter.checkpoint(Part(folder, later), progress, metrics)
