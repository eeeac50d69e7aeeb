"""Known traps that a config walks into: what happens, and what to write instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rayloom.config import RunConfig
from rayloom.models.sizing import GIB, Rows, Sizing

_SMALL_MODEL = 1_000_000_000
_LEAST_LORA_RATE = 1e-4
_GREATEST_FULL_RATE = 2e-3


def traps(config: RunConfig, sizing: Sizing, *, on_gpu: bool, rows: Rows | None = None) -> list[str]:
    """Warnings about a run, each with its remedy.

    Args:
        config: The run.
        sizing: Its estimates.
        on_gpu: Whether workers have GPUs.
        rows: Train rows, where they are known.
    """
    return [
        *_precision_traps(config, sizing, on_gpu),
        *_length_traps(config, sizing),
        *_stage_traps(config, sizing),
        *_worker_traps(config, on_gpu, rows),
        *_learning_traps(config),
        *_disk_traps(config, sizing),
    ]


def _precision_traps(config: RunConfig, sizing: Sizing, on_gpu: bool) -> Iterator[str]:
    if config.training.fp16 and not sizing.shape.family.fp16_safe:
        yield (
            "T5 in fp16: its activations exceed half precision's range; the layers known for it compute in fp32, "
            "but training.bf16: true is safer"
        )
    if config.training.fp16 and not on_gpu:
        yield "fp16 on CPU workers: DeepSpeed refuses it and plain PyTorch is slow: use bf16 or fp32"


def _length_traps(config: RunConfig, sizing: Sizing) -> Iterator[str]:
    limit = sizing.shape.max_positions
    if limit is None:
        return
    dataset = config.dataset
    is_pair = config.model.task_type != "language-modeling" and not sizing.shape.family.seq2seq
    length = dataset.max_input_length + (dataset.max_target_length if is_pair else 0)
    if length > limit:
        parts = "max_input_length + max_target_length" if is_pair else "max_input_length"
        yield f"dataset.{parts} is {length}, but the model has {limit} positions: longer rows fail; lower it"


def _stage_traps(config: RunConfig, sizing: Sizing) -> Iterator[str]:
    workers = config.distributed
    if workers.stage > 0 and workers.num_workers == 1 and workers.offload == "none":
        yield f"ZeRO {workers.stage} with one worker shards nothing and costs time: leave zero_stage out"
    if workers.stage == 3 and config.lora is not None and sizing.shape.parameters < _SMALL_MODEL:
        yield ("LoRA with ZeRO 3 on a small model: gathering weights makes steps 4 to 6 times slower: use stage 1 or 2")
    lowest = sizing.lowest_fitting_stage
    if sizing.memory_limit is None:
        return
    if lowest is None:
        yield (
            "no ZeRO stage fits in the given memory: lower batch_size or lengths, set "
            "gradient_checkpointing, add workers, or use LoRA or offload"
        )
    elif not sizing.fits(sizing.chosen):
        yield f"the config needs more memory than a worker has: zero_stage {lowest} is the lowest that fits"
    elif lowest < workers.stage and workers.num_workers > 1:
        yield f"zero_stage {lowest} fits already; higher stages only cost time"


def _worker_traps(config: RunConfig, on_gpu: bool, rows: Rows | None) -> Iterator[str]:
    workers, per_step = config.distributed, config.global_batch_size
    if rows is not None and rows.num_examples < per_step:
        yield (
            f"one step takes {per_step} rows, but there are only {rows.num_examples}: each epoch is one "
            "small step; lower batch_size, gradient_accumulation_steps or num_workers"
        )
    present = os.cpu_count() or 1
    wanted = workers.num_workers * workers.cpus_per_worker
    if not on_gpu and wanted > present:
        yield (f"the workers ask for {wanted:g} CPUs; this machine has {present}: it needs a cluster, or the run waits")


def _learning_traps(config: RunConfig) -> Iterator[str]:
    rate = config.training.learning_rate
    if config.lora is not None and rate < _LEAST_LORA_RATE:
        yield f"learning_rate {rate:g} is low for LoRA, which mostly wants 1e-4 to 5e-4"
    if config.lora is None and config.model.random_init is None and rate > _GREATEST_FULL_RATE:
        yield f"learning_rate {rate:g} is high for pretrained weights, and likely to wreck them"
    if config.model.random_init is not None:
        yield "random initialisation: the model starts knowing nothing, so expect text of a very young model"
    if config.lora is not None and config.model.random_init is not None:
        yield "LoRA over random weights leaves most of the model random: train it in full first"


def _disk_traps(config: RunConfig, sizing: Sizing) -> Iterator[str]:
    target = config.output.storage_path
    if "://" in target:
        return
    place = Path(target).expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if sizing.total_disk > free:
        yield (
            f"checkpoints and artifact need about {sizing.total_disk / GIB:.1f} GiB, {place} has "
            f"{free / GIB:.1f} GiB free: lower training.save_total_limit or change output.storage_path"
        )
