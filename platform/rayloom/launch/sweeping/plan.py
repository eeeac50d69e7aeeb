"""What a sweep will take, reckoned before it starts: trials, how many at a time, steps, time and disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayloom.config import RunConfig, SweepConfig
from rayloom.errors import ConfigError

if TYPE_CHECKING:
    from rayloom.launch.preparation import Prepared
    from rayloom.launch.session import Cluster

_STARTUP_S = 25.0
"""A trial's start and end: its processes, and the artifact. A guess for two CPUs; the plan says "roughly"."""


@dataclass(frozen=True)
class Need:
    """What one trial takes.

    Attributes:
        cpus: Logical CPUs of all its workers.
        gpus: GPUs of all its workers.
        steps: Optimizer steps to its end.
        steps_per_epoch: In one pass over its train rows.
        seconds: Training time; None where the device cannot be timed from here.
        disk_bytes: Checkpoints that are kept, and the artifact.
    """

    cpus: float
    gpus: float
    steps: int
    steps_per_epoch: int
    seconds: float | None
    disk_bytes: int


@dataclass(frozen=True)
class Plan:
    """The whole sweep.

    Attributes:
        num_trials: Trials that are still to be made or finished.
        num_ended: Trials that have ended in earlier sessions.
        concurrent: Trials at a time.
        need: Of one trial, where trials differ the largest.
        share: Part of all steps that the scheduler is likely to let through; 1 without one.
    """

    num_trials: int
    num_ended: int
    concurrent: int
    need: Need
    share: float

    @property
    def most_steps(self) -> int:
        """Optimizer steps if no trial is stopped."""
        return self.num_trials * self.need.steps

    @property
    def likely_steps(self) -> int:
        """Optimizer steps that are likely to be done."""
        return math.ceil(self.share * self.most_steps)

    @property
    def seconds(self) -> float | None:
        """Wall-clock time that this is likely to take."""
        if self.need.seconds is None:
            return None
        rounds = self.num_trials / self.concurrent
        return rounds * (self.share * self.need.seconds + _STARTUP_S)

    @property
    def disk_bytes(self) -> int:
        """Disk for all trials."""
        return self.num_trials * self.need.disk_bytes


def need_of(prepared: Prepared, configs: Sequence[RunConfig], *, on_gpu: bool) -> Need:
    """What a trial takes at most, over some of them.

    Args:
        prepared: The base config, ready to start.
        configs: Configs of trials; the first few are looked at.
        on_gpu: Whether workers have GPUs.
    """
    from rayloom.models import load_config
    from rayloom.models.sizing import Rows, estimate

    lengths = prepared.train.lengths
    rows = Rows(len(prepared.train), float(lengths.mean()), int(lengths.max()))
    model = load_config(prepared.source)
    needs = []
    for config in configs:
        sizing = estimate(config, model, rows=rows, flops=_rate(config, on_gpu=on_gpu))
        workers, amount = config.distributed, sizing.amount
        needs.append(
            Need(
                cpus=workers.num_workers * workers.cpus_per_worker,
                gpus=workers.num_workers if on_gpu else 0,
                steps=amount.total_steps or 0,
                steps_per_epoch=amount.steps_per_epoch or 1,
                seconds=amount.seconds,
                disk_bytes=sizing.total_disk,
            )
        )
    return _largest(needs)


def _largest(needs: Sequence[Need]) -> Need:
    times = [each.seconds for each in needs if each.seconds is not None]
    return Need(
        cpus=max(each.cpus for each in needs),
        gpus=max(each.gpus for each in needs),
        steps=max(each.steps for each in needs),
        steps_per_epoch=max(each.steps_per_epoch for each in needs),
        seconds=max(times) if times else None,
        disk_bytes=max(each.disk_bytes for each in needs),
    )


def _rate(config: RunConfig, *, on_gpu: bool) -> float | None:
    import torch

    from rayloom.models.throughput import training_rate

    if on_gpu:
        return training_rate(config.training.precision, device="cuda") if torch.cuda.is_available() else None
    precision = "bf16" if config.training.fp16 else config.training.precision
    return training_rate(precision, num_threads=max(1, int(config.distributed.cpus_per_worker)))


def concurrency(config: SweepConfig, need: Need, cluster: Cluster) -> int:
    """Trials at a time: as many as there are workers' places for.

    Raises:
        ConfigError: There is no place for even one. A cluster that is joined may grow, so it is believed.
    """
    rooms = [math.floor(cluster.num_cpus / need.cpus + 1e-9)]
    if need.gpus:
        rooms.append(math.floor(cluster.num_gpus / need.gpus + 1e-9))
    room = min(rooms)
    if room < 1 and cluster.address is None:
        raise ConfigError(
            f"a trial needs {need.cpus:g} CPUs and {need.gpus:g} GPUs, and there are {cluster.num_cpus:g} and "
            f"{cluster.num_gpus:g}: lower distributed.num_workers or cpus_per_worker"
        )
    return max(1, min(room, config.max_concurrent or room, config.total_trials))


def likely_share(config: SweepConfig, need: Need) -> float:
    """Part of all steps that ASHA lets through, if of those at a rung one in ``reduction`` goes on; else 1."""
    asha = config.scheduler.asha
    if asha is None:
        return 1.0
    at = float(asha.grace * (need.steps_per_epoch if asha.unit == "epochs" else 1))
    done, alive, steps = 0.0, 1.0, 0.0
    while at < need.steps:
        steps += alive * (at - done)
        done, at, alive = at, at * asha.reduction, alive / asha.reduction
    return min(1.0, (steps + alive * (need.steps - done)) / need.steps)
