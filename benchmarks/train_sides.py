"""Sides of the training benchmark: Rayloom's own loop, and transformers.Trainer, on the same machine in turn.

Each side keeps its model between turns. Rows a step, precision, optimizer (fused AdamW), learning rate and gradient
clipping are the same, and the loss looks at answers only. Attention is what each side takes by itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_train_overhead import Records, no_rows
from train_work import CPU, Work
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from rayloom.config import RunConfig
from rayloom.data import GlobalBatch
from rayloom.launch.worker import build_backend
from rayloom.models import attach_lora, load_model
from rayloom.training import Backend, Job, train

Rows = Sequence[int]


@dataclass(frozen=True)
class Turn:
    """What one turn of a side came to.

    Args:
        tokens: Real tokens of prompts and answers, without padding.
        seconds: Of training, start-up left out.
        loss: Mean of its last record.
    """

    tokens: int
    seconds: float
    loss: float

    @property
    def speed(self) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Side:
    """One line of a table.

    Args:
        name: For people.
        turn: Trains on the side's batches, or on the first few of them.
        most: Steps of a turn that are enough, because all are alike; None for all.
    """

    name: str
    turn: Callable[[int | None], Turn]
    most: int | None = None


@dataclass(frozen=True)
class SampledJob(Job):
    """A job whose epochs are a sample of its steps."""

    sample: tuple[GlobalBatch, ...] = ()

    def plan(self, epoch: int) -> Sequence[GlobalBatch]:
        """See `Job.plan`."""
        return self.sample

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the sample."""
        return len(self.sample)


def rayloom_side(work: Work, name: str, backend: Backend | None = None) -> Side:
    """`rayloom.training.train` in this process, on a sample of the run's plan.

    Args:
        work: The run.
        name: For people.
        backend: Another backend than a worker of the run would make.
    """
    prepared = work.prepared
    longest = int(prepared.train.lengths.max())
    trained = backend or build_backend(prepared.config, prepared.source, CPU, longest=longest)[0]

    def turn(steps: int | None) -> Turn:
        sample, records = tuple(work.planned[:steps]), Records()
        job = SampledJob(
            prepared.config, prepared.train, no_rows(prepared.train), prepared.tokenizer.pad_token_id, sample=sample
        )
        progress = train(job, trained, records)
        return Turn(progress.tokens, progress.train_s, records.steps[-1].loss)

    return Side(name, turn)


@dataclass
class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Times of a Trainer's steps."""

    began: float = 0.0
    ends: list[float] = field(default_factory=list)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """The first batch is not there yet."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped."""
        self.ends.append(time.perf_counter())


def trainer_side(work: Work, name: str, batches: Sequence[Rows], *, pad_to: int | None = None) -> Side:
    """transformers.Trainer.

    Args:
        work: The run.
        name: For people.
        batches: Rows of each step.
        pad_to: Tokens of every row; None pads to the longest of a batch.
    """
    prepared = work.prepared
    loaded = load_model(prepared.source)
    model: Any = loaded.model
    if prepared.config.lora is not None:
        torch.manual_seed(prepared.config.training.seed)
        model = attach_lora(model, prepared.config.lora, loaded.family)
    padding: dict[str, Any] = {"padding": "max_length", "max_length": pad_to} if pad_to else {"padding": True}
    collate = DataCollatorForSeq2Seq(loaded.tokenizer, **padding)
    features = [features_of(work, row) for rows in batches for row in rows]
    transformers_logging.set_verbosity_error()

    def turn(steps: int | None) -> Turn:
        clock, count = Clock(), len(batches) if steps is None else steps
        with tempfile.TemporaryDirectory(prefix="rayloom-bench-") as folder:
            trainer = Trainer(
                model=model,
                args=arguments(prepared.config, folder, steps=count),
                train_dataset=features,
                data_collator=collate,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            # Otherwise the next turn's Trainer would wrap the wrapped forward pass again.
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        tokens = sum(len(each["input_ids"]) for each in features[: count * prepared.config.training.batch_size])
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        return Turn(tokens, clock.ends[-1] - clock.began, losses[-1])

    return Side(name, turn)


def features_of(work: Work, row: int) -> dict[str, list[int]]:
    """A row as the Trainer's collator takes it."""
    example = work.prepared.train[row]
    return {"input_ids": list(example.input_ids), "labels": list(example.labels)}


def arguments(config: RunConfig, folder: str, *, steps: int) -> TrainingArguments:
    """The Trainer's settings that mean the same run."""
    training = config.training
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=training.batch_size,
        bf16=training.bf16,
        use_cpu=True,
        max_steps=steps,
        learning_rate=training.learning_rate,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        # The batches of its group_by_length come in its own order: see `Work.grouped`.
        train_sampling_strategy="sequential",
        logging_strategy="steps",
        logging_steps=min(steps, training.logging_steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=training.seed,
    )
