"""A whole sweep: check, plan, run trials on Tune, write the report. Going on with one is the same call."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rayloom.config import DistributedConfig, RunConfig, Sweep, SweepConfig
from rayloom.errors import ConfigError, TrainingError
from rayloom.launch.preparation import Prepared, prepare
from rayloom.launch.runs import Run
from rayloom.launch.session import Cluster, ray_session
from rayloom.launch.starting import settled
from rayloom.launch.sweeping.asked import check_same, keep_asked
from rayloom.launch.sweeping.following import Follower
from rayloom.launch.sweeping.plan import Plan, concurrency, likely_share, need_of
from rayloom.launch.sweeping.ranking import Results, results_of
from rayloom.launch.sweeping.results import ResultPaths, write_results
from rayloom.launch.sweeping.space import Point
from rayloom.launch.sweeping.state import SweepState, trial_name
from rayloom.launch.sweeping.tuning import build_tuner, proposed, quiet_tune
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.training import check_resources, uses_gpu

_LOOKED_AT = 4
"""Trials whose configs the plan reckons with."""


class Show(Protocol):
    """What a sweep is shown on."""

    def say(self, text: str) -> None:
        """Take a line for people."""

    def planned(self, sweep: Sweep, prepared: Prepared, plan: Plan, cluster: Cluster, place: str) -> None:
        """Show what is about to happen."""

    def watching(self, state: SweepState, running: set[int]) -> AbstractContextManager[object]:
        """Show how trials go on, until the block ends."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has made.

    Attributes:
        folder: Its folder or URI.
        results: Its trials, ranked.
        paths: The report's files.
    """

    folder: str
    results: Results
    paths: ResultPaths


def run_sweep(sweep: Sweep, *, show: Show, retry_failed: bool = False, verbose: bool = False) -> SweepOutcome:
    """Run a sweep, or go on with it, to its report.

    Args:
        sweep: What `rayloom.config.load_sweep` gives.
        show: What it is shown on.
        retry_failed: Try trials again that failed for good in an earlier session.
        verbose: Show the output of Ray's processes.

    Raises:
        UserError: Of the sweep, its training config, its data or its model.
        TrainingError: All trials failed, or the sweep was interrupted.
        ServiceError: No Ray.
    """
    sweep = Sweep(sweep.config, settled(sweep.base, note=show.say), sweep.name)
    place = Run.of(_named(sweep))
    folder = RunFolder(place.path)
    check_same(sweep, folder)
    state = SweepState(folder)
    if retry_failed:
        state.reopen_failed()
    if _num_open(sweep.config, state):
        _run_trials(sweep, place, state, show, verbose=verbose)
    return finished(sweep, state)


def finished(sweep: Sweep, state: SweepState) -> SweepOutcome:
    """The results of a sweep as its state has them, and the report.

    Raises:
        TrainingError: No trial has an artifact.
    """
    results = results_of(sweep, state)
    if not results.finished:
        raise TrainingError(_nothing(state))
    return SweepOutcome(state.folder.path, results, write_results(results, state.folder))


def _nothing(state: SweepState) -> str:
    failed = [record for record in state if record.end == "failed"]
    if not failed:
        return f"no trial of {state.folder.path} has finished"
    reasons = "\n".join(f"{record.name}: {(record.error or '').strip()[-600:]}" for record in failed[:3])
    return (
        f"all {len(failed)} trials failed; see {state.folder.path}/logs. Once that is mended, --retry-failed tries "
        f"them again. The first of them:\n{reasons}"
    )


def _run_trials(sweep: Sweep, place: Run, state: SweepState, show: Show, *, verbose: bool) -> None:
    known = proposed(sweep.config, state)
    configs = _checked(sweep, known)
    prepared = prepare(sweep.base)
    with ray_session(_widest(configs), verbose=verbose) as cluster:
        for config in configs:
            check_resources(config, cluster)
        need = need_of(prepared, configs[:_LOOKED_AT], on_gpu=uses_gpu(sweep.base, cluster))
        plan = Plan(
            num_trials=_num_open(sweep.config, state),
            num_ended=sum(1 for record in state if record.end),
            concurrent=concurrency(sweep.config, need, cluster),
            need=need,
            share=likely_share(sweep.config, need),
        )
        show.planned(sweep, prepared, plan, cluster, place.path)
        del prepared
        keep_asked(sweep, state.folder)
        follower = Follower(state, sweep.config.metric, show.say)
        with show.watching(state, follower.running), quiet_tune():
            build_tuner(sweep, place, state, follower, plan).fit()
    left = _num_open(sweep.config, state)
    if left:
        raise TrainingError(f"the sweep was interrupted with {left} trials to go: the same command goes on with it")


def _num_open(config: SweepConfig, state: SweepState) -> int:
    return max(0, config.total_trials - sum(1 for record in state if record.end))


def _checked(sweep: Sweep, known: list[Point] | None) -> list[RunConfig]:
    """Configs of the trials that are known already, else the base's."""
    if known is None:
        ends = {key: each.ends[-1] for key, each in sweep.config.space.items()}
        return [sweep.trial_config(ends)]
    configs = []
    for number, point in enumerate(known):
        try:
            configs.append(sweep.trial_config(point))
        except ConfigError as error:
            settings = ", ".join(f"{key}: {value!r}" for key, value in point.items())
            raise ConfigError(f"{trial_name(number)} of the sweep ({settings}) contradicts itself: {error}") from None
    return configs


def _widest(configs: Iterable[RunConfig]) -> DistributedConfig:
    """The workers of the trial that needs most CPUs: a local Ray has to have room for one."""
    workers = [config.distributed for config in configs]
    return max(workers, key=lambda each: each.num_workers * each.cpus_per_worker)


def _named(sweep: Sweep) -> RunConfig:
    output = sweep.base.output.model_copy(
        update={"storage_path": sweep.config.output.storage_path, "run_name": sweep.name}
    )
    return sweep.base.model_copy(update={"output": output})
