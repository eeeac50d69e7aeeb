"""Which backend, ZeRO stage and batch size a run should take, by what its workers' memory holds.

All settings that train the same rows per step are tried; of those that fit, the one that is likely the fastest is
advised. How much slower a setting is than the plain backend is a rule of thumb: sharding optimizer state and gradients
costs little, gathering weights at every layer (stage 3) and keeping state in the host's memory cost much, recomputing
costs what it computes, and smaller micro-batches use the hardware less well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rayloom.config import RunConfig
from rayloom.models.sizing import Rows, Shape, WorkerMemory, worker_memory

Recompute = bool | Literal["selective"]
Changes = dict[str, dict[str, Any]]
"""Values of config keys, by section."""

_STAGE_COSTS: dict[int | None, float] = {None: 1.0, 1: 1.03, 2: 1.06, 3: 1.6}
_RECOMPUTE_COSTS: dict[Recompute, float] = {False: 1.0, "selective": 7 / 6, True: 4 / 3}
_OFFLOAD_COST = 2.0
_HALVING_COST = 1.08
_MOST_ROWS = 1024


@dataclass(frozen=True)
class Setting:
    """One way to run a config.

    Attributes:
        stage: ZeRO stage; None is the plain backend.
        offload: Optimizer state (at stage 3 weights too) in the host's memory.
        recompute: ``training.gradient_checkpointing``.
        halvings: How often the micro-batch is halved, and accumulation doubled.
    """

    stage: int | None
    offload: bool
    recompute: Recompute
    halvings: int

    @property
    def name(self) -> str:
        """For people; "+ CPU" means offloading."""
        backend = "plain PyTorch" if self.stage is None else f"DeepSpeed ZeRO {self.stage}"
        return backend + (" + CPU" if self.offload else "")

    @property
    def cost(self) -> float:
        """Time of a step, relative to the plain backend that keeps everything."""
        offload = _OFFLOAD_COST if self.offload else 1.0
        halvings: float = _HALVING_COST**self.halvings
        return _STAGE_COSTS[self.stage] * _RECOMPUTE_COSTS[self.recompute] * offload * halvings

    def keys(self, config: RunConfig) -> Changes:
        """What the config's keys have to be."""
        training, backend = config.training, config.distributed.backend
        if self.stage is None and backend == "deepspeed":
            backend = "plain"
        if self.stage is not None and backend == "plain":
            backend = "auto"
        return {
            "training": {
                "batch_size": training.batch_size >> self.halvings,
                "gradient_accumulation_steps": training.gradient_accumulation_steps << self.halvings,
                "gradient_checkpointing": self.recompute,
            },
            "distributed": {
                "backend": backend,
                "zero_stage": self.stage,
                "offload": "cpu" if self.offload else "none",
                "nvme_path": None,
            },
        }

    def applied(self, config: RunConfig) -> RunConfig:
        """The config with this setting."""
        sections = {name: getattr(config, name).model_copy(update=keys) for name, keys in self.keys(config).items()}
        return config.model_copy(update=sections)


@dataclass(frozen=True)
class Choice:
    """A setting and what a worker would hold."""

    setting: Setting
    memory: WorkerMemory
    fits: bool


@dataclass(frozen=True)
class Advice:
    """What to write into the config.

    Attributes:
        chosen: The fastest setting that fits; None where none does.
        refused: Faster settings that do not fit, one of each backend and stage, the fastest first.
        most_rows: Rows of a micro-batch that the chosen setting has room for.
    """

    chosen: Choice | None
    refused: tuple[Choice, ...]
    most_rows: int

    def changes(self, config: RunConfig) -> Changes:
        """Keys that have another value in the config; empty where it is as advised."""
        if self.chosen is None:
            return {}
        found: Changes = {}
        for name, keys in self.chosen.setting.keys(config).items():
            section = getattr(config, name)
            different = {key: value for key, value in keys.items() if getattr(section, key) != value}
            if different:
                found[name] = different
        return found


def advise(
    config: RunConfig,
    shape: Shape,
    *,
    memory_limit: int,
    on_gpu: bool,
    rows: Rows | None = None,
    one_machine: bool = False,
) -> Advice:
    """Choose backend, ZeRO stage, offload, recomputing and micro-batch for a run.

    Args:
        config: The run; its workers and rows per step are kept.
        shape: Of its model.
        memory_limit: Bytes that one worker has.
        on_gpu: Whether workers have GPUs: on CPUs there is nowhere to offload to.
        rows: Train rows, where they are known.
        one_machine: All workers are CPUs of one machine.
    """

    def memory_of(setting: Setting, applied: RunConfig) -> WorkerMemory:
        return worker_memory(applied, shape, setting.stage or 0, rows, one_machine=one_machine)

    tried: list[Choice] = []
    for setting in sorted(_settings(config, on_gpu=on_gpu), key=lambda setting: setting.cost):
        memory = memory_of(setting, setting.applied(config))
        tried.append(Choice(setting, memory, memory.fits(memory_limit)))
        if tried[-1].fits:
            break
    chosen = tried[-1] if tried[-1].fits else None
    firsts = {(one.setting.stage, one.setting.offload): one for one in reversed(tried) if not one.fits}
    refused = tuple(sorted(firsts.values(), key=lambda one: one.setting.cost))
    most = _most_rows(chosen.setting.applied(config), partial(memory_of, chosen.setting), memory_limit) if chosen else 0
    return Advice(chosen, refused, most)


def _settings(config: RunConfig, *, on_gpu: bool) -> Iterator[Setting]:
    batch_size = config.training.batch_size
    halvings = range((batch_size & -batch_size).bit_length())
    # A single worker has nobody to share with.
    stages: tuple[int | None, ...] = (None, 1, 2, 3) if config.distributed.num_workers > 1 else (None,)
    places = [(stage, False) for stage in stages] + ([(2, True), (3, True)] if on_gpu else [])
    for (stage, offload), recompute, count in itertools.product(places, _RECOMPUTE_COSTS, halvings):
        yield Setting(stage, offload, recompute, count)


def _most_rows(applied: RunConfig, memory_of: Callable[[RunConfig], WorkerMemory], memory_limit: int) -> int:
    """Rows of a micro-batch that fit: the setting's, or these doubled as often as there is room."""
    size = applied.training.batch_size
    while size < _MOST_ROWS:
        training = applied.training.model_copy(update={"batch_size": 2 * size})
        if not memory_of(applied.model_copy(update={"training": training})).fits(memory_limit):
            break
        size *= 2
    return size
