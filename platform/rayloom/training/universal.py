"""Optimizer states of one backend, ZeRO stage and number of workers, for any other.

A checkpoint that other workers wrote is first taken apart, in a temporary folder of each node, into DeepSpeed's
universal layout: ``zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt``, all whole. Every backend can be filled from
there, because the layout knows neither ranks nor stages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayloom.errors import TrainingError
from rayloom.training import distributed
from rayloom.training.checkpoint import load_weights
from rayloom.training.optimizer import parameter_names
from rayloom.training.scratch import scratch

MOMENTS = ("exp_avg", "exp_avg_sq")
MODEL_PREFIX = "model."
"""Of parameter names in `TokenLoss`, whose ``model`` is what the trained weights name."""


@contextlib.contextmanager
def universal_folder(convert: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder of this node that its first rank has filled. Collective.

    Args:
        convert: Fills the folder; called on one rank of each node.

    Raises:
        TrainingError: It failed, on any node.
    """
    hosts = distributed.gather_objects(socket.gethostname())
    leader = hosts.index(socket.gethostname())
    with contextlib.ExitStack() as stack:
        name, failure = "", None
        if leader == distributed.rank():
            folder = stack.enter_context(scratch("universal"))
            name, failure = str(folder), _failure(convert, folder)
        made = distributed.gather_objects((name, failure))
        broken = next((reason for _, reason in made if reason is not None), None)
        if broken is not None:
            raise TrainingError(f"the checkpoint cannot be converted for other workers: {broken}")
        yield Path(made[leader][0])
        distributed.gather_objects(None)  # all have read it before it goes


def from_deepspeed(tag_folder: Path, folder: Path, *, module: nn.Module, weights: Path, stage: int) -> None:
    """Take a DeepSpeed checkpoint apart.

    Args:
        tag_folder: Holds DeepSpeed's files of all ranks.
        folder: Is filled.
        module: The loss module; names the parameters.
        weights: Folder of the checkpoint itself, with the trained weights.
        stage: ZeRO stage that wrote it.
    """
    if stage == 0:
        state = torch.load(tag_folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        optimizer = state["optimizer"]  # in half precision wrapped, with the masters beside it
        from_torch(optimizer.get("optimizer_state_dict", optimizer), folder, module=module, weights=weights)
        return
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(tag_folder),
        output_folder=str(folder),
        num_extract_workers=1,  # more would fork a process that has threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    names = parameter_names(module)
    kept = torch.load(folder / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
    _write_steps(folder, names, _step_of(folder, names, kept))
    if stage == 3:
        _wrap(folder, names)


def from_torch(state: dict[str, Any], folder: Path, *, module: nn.Module, weights: Path) -> None:
    """Take the state of an unsharded torch optimizer apart.

    Args:
        state: Its ``state_dict()``; parameters are numbered in the order of `parameter_names`.
        folder: Is filled.
        module: The loss module; names the parameters.
        weights: Folder of the checkpoint, with the trained weights in float32.
    """
    trained, names = load_weights(weights), parameter_names(module)
    for index, name in enumerate(names):
        moments = {key: state["state"][index][key] for key in MOMENTS}
        for key, value in {"fp32": trained[name.removeprefix(MODEL_PREFIX)], **moments}.items():
            place = folder / "zero" / name / f"{key}.pt"
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"param": value.float()}, place)
    _write_steps(folder, names, float(state["state"][0]["step"]))


def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    """What a universal folder holds of one parameter: ``fp32``, the moments, and ``step`` (scalar)."""
    place = folder / "zero" / name
    state = {key: torch.load(place / f"{key}.pt", weights_only=True)["param"] for key in ("fp32", *MOMENTS)}
    return state | {"step": torch.load(place / "step.pt", weights_only=True)}


def fill_torch(optimizer: Any, masters: Mapping[str, Tensor], folder: Path) -> None:
    """Put weights and moments into an unsharded torch optimizer.

    Args:
        optimizer: AdamW.
        masters: The tensors that it updates, by parameter name; they are overwritten.
        folder: A universal folder.
    """
    for name, master in masters.items():
        state = read_state(folder, name)
        with torch.no_grad():
            master.copy_(state["fp32"].reshape(master.shape))
        moments = {key: state[key].reshape(master.shape).to(master.device, master.dtype) for key in MOMENTS}
        optimizer.state[master] = moments | {"step": state["step"].clone()}


def _failure(convert: Callable[[Path], None], folder: Path) -> str | None:
    # Whatever goes wrong here must reach the other ranks, which wait.
    try:
        convert(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _step_of(folder: Path, names: list[str], kept: dict[str, Any]) -> float:
    first = folder / "zero" / names[0] / "step.pt"
    if first.exists():
        return float(torch.load(first, weights_only=False))
    return float(kept["optimizer_state_dict"]["state"][0]["step"])  # ZeRO-3


def _wrap(folder: Path, names: list[str]) -> None:
    """ZeRO-3's conversion leaves bare tensors, which stages 1 and 2 do not read."""
    for place in (folder / "zero" / name / f"{key}.pt" for name in names for key in ("fp32", *MOMENTS)):
        torch.save({"param": torch.load(place, weights_only=True)}, place)


def _write_steps(folder: Path, names: list[str], step: float) -> None:
    for name in names:
        torch.save(torch.tensor(step), folder / "zero" / name / "step.pt")
