"""What runs in each Ray Train worker: build model and backend, then the loop."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device

from rayloom.config import RunConfig
from rayloom.data import Columns, EncodedDataset, Encoder, PromptTemplate, Row
from rayloom.launch.progress import Note, post
from rayloom.launch.shipping import Files, unpack
from rayloom.launch.validator import build_validator
from rayloom.models import ModelSource, attach_lora, load_model
from rayloom.training import (
    Backend,
    DeepSpeedBackend,
    EvalRecord,
    Job,
    PlainBackend,
    Progress,
    StepRecord,
    TokenLoss,
    load_progress,
    train,
)
from rayloom.training.distributed import gather_objects

SCORE = "score"
"""Metric of a checkpoint by which Ray keeps the best: larger is better."""

_EAGER_TOKENS = 160
"""On CPUs, the backward pass of torch 2.13's fused attention costs more than the plain one up to about this length
(measured with bf16 rows of 45 tokens: five times as much)."""


@dataclass(frozen=True)
class Payload:
    """What travels to the workers: small things as they are, data by reference into the object store."""

    config: RunConfig
    source: ModelSource
    template: PromptTemplate
    columns: Columns
    model_files: Any
    """ObjectRef of `Files` or None."""
    train: Any
    """ObjectRef of the encoded train rows."""
    validation: Any
    """ObjectRef of the encoded validation rows."""
    eval_rows: list[Row]
    board: Any
    """Handle of a `Board`."""


def work(payload: Payload) -> dict[str, Any]:
    """Build model and backend, and train. Returns the final `Progress` as a dictionary, and peak memory."""
    files: Files | None = ray.get(payload.model_files)
    unpack(payload.source, files)
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, math.floor(payload.config.distributed.cpus_per_worker)))
    train_rows: EncodedDataset = ray.get(payload.train)
    longest = int(train_rows.lengths.max())
    backend, tokenizer = build_backend(payload.config, payload.source, device, longest=longest)
    encoder = Encoder(
        tokenizer,
        payload.template,
        max_input_length=payload.config.dataset.max_input_length,
        max_target_length=payload.config.dataset.max_target_length,
    )
    validation_rows: EncodedDataset = ray.get(payload.validation)
    job = Job(
        config=payload.config,
        train=train_rows,
        validation=validation_rows,
        pad_token_id=tokenizer.pad_token_id,
        validator=build_validator(payload.config, payload.eval_rows, payload.columns, encoder),
    )
    reporter = RayReporter(payload.config, payload.board)
    with _checkpoint_folder() as folder:
        if folder is not None:
            reporter.note(f"resumed at step {load_progress(folder).step} of {job.total_steps}")
        progress = train(job, backend, reporter, resume_from=folder)
    return asdict(progress) | peak_memory(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most memory that any worker took: resident, and of tensors on its GPU. Collective."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    hosts, gpus = zip(*gather_objects((host, gpu)), strict=True)
    return {"peak_host_bytes": max(hosts)} | ({"peak_gpu_bytes": max(gpus)} if device.type == "cuda" else {})


def build_backend(config: RunConfig, source: ModelSource, device: torch.device, *, longest: int) -> tuple[Backend, Any]:
    """Load the model, attach LoRA, and wrap both into the chosen backend.

    Args:
        config: The run.
        source: Where the model lies.
        device: CPU or this worker's GPU.
        longest: Tokens of the longest row, which decides the kind of attention on CPUs.

    Returns:
        The backend and the model's tokenizer.
    """
    loaded = load_model(source)
    model: Any = loaded.model
    if device.type == "cpu" and longest <= _EAGER_TOKENS:
        model.set_attn_implementation("eager")
    if config.lora is not None:
        torch.manual_seed(config.training.seed)  # the adapter's first weights are random
        model = attach_lora(model, config.lora, loaded.family)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    module = TokenLoss(model, seq2seq=loaded.family.seq2seq, label_smoothing=config.training.label_smoothing)
    kind = DeepSpeedBackend if config.distributed.uses_deepspeed else PlainBackend
    return kind(module, config, device), loaded.tokenizer


class RayReporter:
    """Hands checkpoints to Ray Train and news to the board."""

    def __init__(self, config: RunConfig, board: Any) -> None:
        self._training, self._board = config.training, board
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def note(self, text: str) -> None:
        """A line for people."""
        if self._is_first:
            post(self._board, Note(text))

    def stepped(self, record: StepRecord) -> None:
        """See `Reporter.stepped`."""
        post(self._board, record)

    def evaluated(self, record: EvalRecord) -> None:
        """See `Reporter.evaluated`."""
        post(self._board, record)

    def checkpoint(self, folder: Path, progress: Progress, metrics: dict[str, float]) -> None:
        """See `Reporter.checkpoint`. Ray merges the ranks' folders into one checkpoint."""
        reported = metrics | {"step": progress.step, "epoch": progress.epoch}
        value = metrics.get(self._training.metric_for_best)
        if value is not None:
            reported[SCORE] = value if self._training.larger_is_better else -value
        ray.train.report(reported, checkpoint=Checkpoint.from_directory(str(folder)))


@contextlib.contextmanager
def _checkpoint_folder() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as name:
            yield Path(name)
