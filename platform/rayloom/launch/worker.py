"""What runs in each Ray Train worker: build model and backend, then the loop."""

from __future__ import annotations

import contextlib
import math
import resource
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train.torch import get_device

from rayloom.config import RunConfig
from rayloom.data import Columns, Dataset, Encoder, PromptTemplate, Row
from rayloom.errors import DivergedError
from rayloom.launch.progress import Note, post
from rayloom.launch.reporting import WorkerReporter
from rayloom.launch.shipping import Files, unpack
from rayloom.launch.validator import build_validator
from rayloom.models import ModelSource, attach_lora, load_model, recompute_activations
from rayloom.training import (
    Backend,
    CheckpointSaver,
    CheckpointStore,
    Commit,
    DeepSpeedBackend,
    Job,
    Member,
    PlainBackend,
    Progress,
    TokenLoss,
    keep_freed_memory,
    load_progress,
    train,
)
from rayloom.training.distributed import gather_objects, rank, world_size

DIVERGED = "diverged"
"""Key of what a worker returns where training has diverged: the reason."""
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
    """ObjectRef of the encoded train rows (of a streamed corpus: of the place where they lie)."""
    validation: Any
    """ObjectRef of the encoded validation rows."""
    eval_rows: list[Row]
    board: Any
    """Handle of a `Board`."""
    place: str
    """Folder or URI of the run."""
    identity: dict[str, str]
    """What decides the run's weights, see `rayloom.training.Identity`."""
    waits: bool = False
    """Whether the driver is waited for after each validation, see `rayloom.launch.progress.Awaited`."""

    def store(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(f"{self.place}/checkpoints", self.identity, note=self.note)

    def note(self, text: str) -> None:
        """Post a line for people."""
        post(self.board, Note(text))


def work(payload: Payload) -> dict[str, Any]:
    """Build model and backend, and train. Returns the final `Progress` as a dictionary, and peak memory; see `told`."""
    files: Files | None = ray.get(payload.model_files)
    unpack(payload.source, files)
    device = get_device()
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(max(1, math.floor(payload.config.distributed.cpus_per_worker)))
    train_rows: Dataset = ray.get(payload.train)
    longest = int(train_rows.lengths.max())
    backend, tokenizer = build_backend(payload.config, payload.source, device, longest=longest)
    encoder = Encoder(
        tokenizer,
        payload.template,
        max_input_length=payload.config.dataset.max_input_length,
        max_target_length=payload.config.dataset.max_target_length,
    )
    validation_rows: Dataset = ray.get(payload.validation)
    job = Job(
        config=payload.config,
        train=train_rows,
        validation=validation_rows,
        pad_token_id=tokenizer.pad_token_id,
        validator=build_validator(payload.config, payload.eval_rows, payload.columns, encoder),
    )
    return told(lambda: run(job, backend, payload), device)


def told(train: Callable[[], Progress], device: torch.device) -> dict[str, Any]:
    """What Ray carries from a worker to the driver: how training ended. Collective.

    Divergence is told instead of raised: all ranks meet it together, and Ray would replace workers that raise, to meet
    it again and again.
    """
    try:
        progress = train()
    except DivergedError as error:
        return {DIVERGED: str(error)}
    return asdict(progress) | peak_memory(device)


def run(job: Job, backend: Backend, payload: Payload) -> Progress:
    """Train from the last checkpoint that can be trusted, or from the start. Collective."""
    config, store = payload.config, payload.store()
    member, chosen = join(store)
    saver = CheckpointSaver(
        store,
        member,
        keep=config.training.save_total_limit,
        saved=lambda commit: payload.note(f"saved step {commit.step}"),
    )
    with _opened(store, chosen) as folder, saver:
        reporter = WorkerReporter(
            config,
            payload.board,
            place=payload.place,
            saver=saver,
            is_first=member.rank == 0,
            waits=payload.waits,
        )
        if folder is not None:
            before = load_progress(folder)
            reporter.note(f"resumed at step {before.step} of {job.resumed(before).total_steps}")
        return train(job, backend, reporter, resume_from=folder)


def join(store: CheckpointStore) -> tuple[Member, Commit | None]:
    """Agree on the attempt's name and on the checkpoint to go on from. Collective: rank 0 decides."""
    decided: tuple[str, Commit | None] = ("", None)
    if rank() == 0:
        attempt = uuid.uuid4().hex[:8]
        decided = attempt, store.take_over(attempt)
    attempt, chosen = gather_objects(decided)[0]
    return Member(attempt, rank(), world_size()), chosen


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
    if device.type == "cpu" and max(longest, config.training.packing_length or 0) <= _EAGER_TOKENS:
        model.set_attn_implementation("eager")
    if config.lora is not None:
        torch.manual_seed(config.training.seed)  # the adapter's first weights are random
        model = attach_lora(model, config.lora, loaded.family)
    recompute_activations(model, config.training.gradient_checkpointing)
    module = TokenLoss(model, seq2seq=loaded.family.seq2seq, label_smoothing=config.training.label_smoothing)
    kind = DeepSpeedBackend if config.distributed.uses_deepspeed else PlainBackend
    return kind(module, config, device), loaded.tokenizer


def _opened(store: CheckpointStore, chosen: Commit | None) -> contextlib.AbstractContextManager[Path | None]:
    return contextlib.nullcontext() if chosen is None else store.opened(chosen)
