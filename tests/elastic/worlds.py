"""Training in groups of plain processes (gloo, no Ray), of whatever size and backend a leg of a run asks for."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from rayloom.config import LoraConfig
from rayloom.models import attach_lora
from rayloom.training import DeepSpeedBackend, Job, PlainBackend, TokenLoss, load_weights, train
from tests.fakes import KeptReports, random_examples, run_config, tiny_model

ROWS, STEPS, CUTS = 36, 10, (4, 8)
"""36 rows in global batches of 8: five steps an epoch, the last one of four rows; checkpoints at the cuts."""


@dataclass(frozen=True)
class Leg:
    """A stretch of a run, on one number of workers."""

    name: str
    family: str = "llama"
    stage: int | None = None
    lora: bool = False
    bf16: bool = False
    resume_from: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """What a leg reported: losses by step, its end, and where its checkpoints are."""

    losses: dict[int, float]
    norms: dict[int, float]
    notes: list[str]
    progress: dict[str, Any]
    folder: Path
    seconds: float = 0.0
    error: str | None = None

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def weights(self, step: int = STEPS) -> dict[str, torch.Tensor]:
        return load_weights(self.checkpoint(step))


def run_legs(legs: list[Leg], folder: Path, *, world_size: int, timeout_s: float = 400.0) -> dict[str, Ended]:
    """Run legs one after the other in one group of processes, which pays for their start only once."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.start_processes(
        _member, args=(world_size, port, legs, folder), nprocs=world_size, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + timeout_s
    while not context.join(timeout=5.0):  # returns whenever one process has ended
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{world_size} workers were not done in {timeout_s} s")
    return {leg.name: _ended(folder / leg.name) for leg in legs}


def _ended(folder: Path) -> Ended:
    values = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    losses, norms = ({int(step): value for step, value in values.pop(key).items()} for key in ("losses", "norms"))
    return Ended(losses=losses, norms=norms, folder=folder, **values)


def _member(rank: int, world_size: int, port: int, legs: list[Leg], folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    warnings.filterwarnings("ignore", category=FutureWarning)  # DeepSpeed calls torch by old names
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    for leg in legs:
        _run(leg, folder / leg.name, rank)
    torch.distributed.destroy_process_group()


def _run(leg: Leg, folder: Path, rank: int) -> None:
    reports = KeptReports(folder)
    end: dict[str, Any] = {"progress": {}}
    try:
        began = time.monotonic()
        end["progress"] = asdict(_train(leg, reports))
        end["seconds"] = time.monotonic() - began
    except Exception:
        end["error"] = traceback.format_exc()
    if rank == 0:
        end["losses"] = {record.step: record.loss for record in reports.steps}
        end["norms"] = {record.step: record.grad_norm for record in reports.steps}
        end["notes"] = reports.notes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ended.json").write_text(json.dumps(end), encoding="utf-8")


def _train(leg: Leg, reports: KeptReports) -> Any:
    config = run_config(
        training={
            "batch_size": 4,
            "num_epochs": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "checkpoint_every_steps": 4,
            "bf16": leg.bf16,
        }
        | leg.training,
        distributed={"num_workers": 2, "zero_stage": leg.stage},
        lora={"r": 4} if leg.lora else None,
    )
    seq2seq = leg.family == "t5"
    model: Any = tiny_model(leg.family)
    if leg.lora:
        from rayloom.models.families import family_of

        torch.manual_seed(0)
        model = attach_lora(model, LoraConfig(r=4), family_of(model.config))
    module = TokenLoss(model, seq2seq=seq2seq)
    kind = PlainBackend if leg.stage is None else DeepSpeedBackend
    job = Job(
        config=config,
        train=random_examples(ROWS, seq2seq=seq2seq, seed=1),
        validation=random_examples(8, seq2seq=seq2seq, seed=2),
        pad_token_id=0,
    )
    resume_from = Path(leg.resume_from) if leg.resume_from else None
    return train(job, kind(module, config, torch.device("cpu")), reports, resume_from=resume_from)
