"""Checkpoints: all that is needed to resume, one folder for all ranks.

Layout::

    state.json            progress (rank 0)
    weights.safetensors   trained weights in float32, whole, whatever the ZeRO stage (rank 0)
    rng_rank<r>.pt        random states of each rank
    plain.pt              optimizer and scaler (plain backend, rank 0)   or   deepspeed/   (all ranks)

The trained weights stand beside the backend's own state so that an artifact can be made of any checkpoint without
DeepSpeed, on any number of processes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayloom.errors import TrainingError
from rayloom.training.selection import Selection

WEIGHTS = "weights.safetensors"
_STATE = "state.json"


@dataclass(frozen=True)
class Window:
    """What has been counted since the last record of steps: the next record tells it too, also after a resumption.

    Attributes:
        steps: Optimizer steps.
        losses: Summed loss of each rank.
        targets: Target tokens, over all workers.
        tokens: Real input tokens, over all workers.
        seconds: Of training.
    """

    steps: int = 0
    losses: tuple[float, ...] = ()
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def loss_of(self, rank: int, world_size: int) -> float:
        """A rank's own sum; on another number of workers, the first one goes on with all of them."""
        if len(self.losses) == world_size:
            return self.losses[rank]
        return sum(self.losses, 0.0) if rank == 0 else 0.0


@dataclass(frozen=True)
class Progress:
    """A place in a run.

    Attributes:
        epoch: Epochs finished.
        batch: Global batches of the current epoch that are done.
        step: Optimizer steps done.
        tokens: Real input tokens seen, over all workers.
        train_s: Seconds spent training (without evaluation), summed over interruptions.
        world_size: Workers at the time. Another number goes on with the same batches.
        global_batch_size: Rows per optimizer step, which never change within a run; 0 if not known.
        selection: Best evaluation so far.
        metrics: Validation figures of the last evaluation.
        window: What no record has told yet; tokens and seconds above include it.
        trend: Of the loss, which tells jumps of it, see `rayloom.training.safety.SpikeWatch`.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    train_s: float = 0.0
    world_size: int = 1
    global_batch_size: int = 0
    selection: Selection = field(default_factory=Selection)
    metrics: dict[str, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    trend: tuple[int, float, float] = (0, 0.0, 0.0)

    def moved(self, **changes: Any) -> Progress:
        """A copy at another place."""
        return replace(self, **changes)


Write = Callable[[Path], None]
"""Writes a file of a checkpoint into a folder, from memory that nothing else changes any more."""


@dataclass(frozen=True)
class Part:
    """What one rank gives to a checkpoint: files, and what can be written while training goes on.

    Attributes:
        folder: Holds what could not wait. It is gone when `Reporter.checkpoint` returns, unless its files were moved.
        later: Write the rest, on any thread.
    """

    folder: Path
    later: tuple[Write, ...] = ()

    def finish(self, folder: Path) -> None:
        """Write the rest into the folder where the files are by now."""
        for write in self.later:
            write(folder)


def save_progress(progress: Progress, folder: Path) -> None:
    """Write ``state.json``."""
    (folder / _STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")


def load_progress(folder: Path) -> Progress:
    """Read ``state.json``.

    Raises:
        TrainingError: The folder holds no checkpoint.
    """
    try:
        values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        window = values.get("window", {})  # earlier versions kept neither this nor the trend
        parts = {
            "selection": Selection(**values["selection"]),
            "window": Window(**window | {"losses": tuple(window.get("losses", ()))}),
            "trend": tuple(values.get("trend", (0, 0.0, 0.0))),
        }
        return Progress(**values | parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{folder} is not a checkpoint that can be resumed: {error}") from error


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write the trained weights."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the trained weights of a checkpoint, float32 on the CPU, by parameter name."""
    return load_file(folder / WEIGHTS)


def save_rng(folder: Path, rank: int) -> None:
    """Write this rank's random states."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    torch.save(state, folder / f"rng_rank{rank}.pt")


def load_rng(folder: Path, rank: int) -> None:
    """Put this rank's random states back."""
    # Our own file: it holds Python tuples and numpy arrays, which weights_only refuses.
    state = torch.load(folder / f"rng_rank{rank}.pt", weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
