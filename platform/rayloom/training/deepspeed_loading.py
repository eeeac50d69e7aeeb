"""Filling a DeepSpeed engine from a checkpoint that other workers, another stage or another backend wrote."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayloom.config import RunConfig
from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.universal import fill_torch

_LAYOUT = "layout.json"


@dataclass(frozen=True)
class Layout:
    """What decides the form of DeepSpeed's own files: only the very same layout loads them directly."""

    world_size: int
    stage: int
    precision: str
    offload: str

    @classmethod
    def of(cls, config: RunConfig) -> Layout:
        """The layout of this process group."""
        workers = config.distributed
        return cls(distributed.world_size(), workers.stage, config.training.precision, workers.offload)

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """The layout that wrote a folder.

        Raises:
            TrainingError: It names none.
        """
        try:
            return cls(**json.loads((folder / _LAYOUT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{folder} does not say which workers wrote it: {error}") from error

    def write(self, folder: Path) -> None:
        """Store beside DeepSpeed's files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LAYOUT).write_text(json.dumps(asdict(self)), encoding="utf-8")


def write_global_state(engine: Any, folder: Path, *, step: Tensor) -> None:
    """Write ``zero/optimizer_state.pt`` for this engine's stage, whichever stage the checkpoint is of.

    Args:
        engine: DeepSpeed engine of stage 1, 2 or 3.
        folder: A universal folder.
        step: Optimizer steps done.
    """
    import deepspeed

    place = folder / "zero" / "optimizer_state.pt"
    before: dict[str, Any] = {}
    if place.exists():
        before = torch.load(place, map_location="cpu", weights_only=False)
    scaler = {key: before[key] for key in ("loss_scaler", "dynamic_loss_scale") if key in before}
    groups = [_settings(group) for group in engine.optimizer.param_groups]
    inner = {"state": {0: {"step": step}}, "param_groups": groups}
    state = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": inner}
    torch.save(scaler | state, place)


def fill_engine(engine: Any, folder: Path, masters: dict[str, Tensor] | None, *, integer_steps: bool) -> None:
    """Put weights, masters and moments into an engine. Collective.

    Args:
        engine: DeepSpeed engine as it was made.
        folder: A universal folder.
        masters: Stage 0: the tensors that the optimizer updates, by name; None at other stages.
        integer_steps: DeepSpeed's CPU kernel counts steps in Python.
    """
    if masters is not None:
        fill_torch(getattr(engine.optimizer, "optimizer", engine.optimizer), masters, folder)
        for name, parameter in engine.module.named_parameters():
            if name in masters and masters[name] is not parameter:
                parameter.data.copy_(masters[name].data)
        return
    optimizer = engine.optimizer
    settings = [_settings(group) for group in optimizer.param_groups]
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(state_dict_list=None, load_optimizer_states=True, checkpoint_folder=str(folder))
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    # ZeRO-3 gives every group the first one's settings: weight decay on biases, for one.
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)
    # ZeRO-3 shares one step tensor between all groups, and each would count it up.
    for state in optimizer.optimizer.state.values():
        if "step" in state:
            state["step"] = int(state["step"]) if integer_steps else torch.as_tensor(state["step"]).clone()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
