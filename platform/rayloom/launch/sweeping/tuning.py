"""A sweep as a Ray Tune experiment: what it is made of, and where its trials go on."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune

from rayloom.config import Sweep, SweepConfig
from rayloom.launch.runs import Run
from rayloom.launch.sweeping.following import Follower
from rayloom.launch.sweeping.orders import SCORE, TRIAL
from rayloom.launch.sweeping.plan import Plan
from rayloom.launch.sweeping.searching import Proposals, scheduler
from rayloom.launch.sweeping.space import Point, points
from rayloom.launch.sweeping.state import SweepState, TrialRecord, trial_name
from rayloom.launch.sweeping.trial import Spec, Trial, replay

_FORWARDED = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONPATH", "RAYLOOM_CACHE", "HF_HOME", "DS_ACCELERATOR")
"""Of the driver's environment, what a trial's process needs to be like it."""


def proposed(config: SweepConfig, state: SweepState) -> list[Point] | None:
    """Settings of all trials where they are known before they start; None where Optuna proposes them.

    Those of trials that have begun are as they are now: PBT changes them.
    """
    if config.search == "optuna":
        return None
    return [
        state.trials[number].values if number in state.trials else point for number, point in enumerate(points(config))
    ]


def build_tuner(sweep: Sweep, place: Run, state: SweepState, follower: Follower, plan: Plan) -> tune.Tuner:
    """The experiment, ready to run.

    Args:
        sweep: What is asked for.
        place: The sweep's folder.
        state: What has happened already.
        follower: Told of everything.
        plan: Says how many trials go at a time.
    """
    config = sweep.config
    is_population = config.scheduler.kind == "pbt"
    spec = _spec(sweep, place, state)
    trials = [each for each in _trials(config, state) if each[0] in spec.ended or not _has_end(state, each[0])]
    searching = _searching(config, state, trials)
    path, filesystem = place.ray_storage()
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, spec=spec), {"memory": _share(plan.concurrent)}),
        param_space=searching.pop("param_space"),
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode=config.direction,
            scheduler=scheduler(config),
            # A population is parted over time: there the resources alone decide.
            max_concurrent_trials=None if is_population else plan.concurrent,
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            **searching,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            callbacks=[follower],
            verbose=0,
        ),
    )


def _spec(sweep: Sweep, place: Run, state: SweepState) -> Spec:
    config = sweep.config
    is_population = config.scheduler.kind == "pbt"
    return Spec(
        sweep=place.path,
        base=sweep.base.model_dump(mode="json"),
        metric=config.metric,
        measured=config.intervals or config.is_measured_at_end,
        is_population=is_population,
        waits=config.scheduler.kind != "none",
        cwd=os.getcwd(),
        environment=_environment(),
        # A population has moved on: what its trials were once must not be compared again.
        ended={} if is_population else {record.number: _replayed(config, record) for record in _ended(state)},
    )


def _searching(config: SweepConfig, state: SweepState, trials: list[tuple[int, Point]]) -> dict[str, Any]:
    """Where Tune gets its trials from."""
    if config.search != "optuna":
        return {"param_space": {TRIAL: tune.grid_search([{"number": n, "values": values} for n, values in trials])}}
    used = len(state.trials)
    return {
        "param_space": {},
        "search_alg": Proposals(config, known=trials, used=used, begun=state.begun),
        "num_samples": len(trials) + max(0, config.total_trials - used),
    }


def _trials(config: SweepConfig, state: SweepState) -> Iterator[tuple[int, Point]]:
    """Trials in order with their settings: those that have begun, and those that are known before they begin."""
    known = proposed(config, state)
    if known is not None:
        yield from enumerate(known)
        return
    for record in state:
        yield record.number, record.values


def _ended(state: SweepState) -> list[TrialRecord]:
    """Trials whose reports Tune hears once more, so that it decides as if it had never been away."""
    return [record for record in state if record.end in ("finished", "stopped") and record.reports]


def _has_end(state: SweepState, number: int) -> bool:
    return number in state.trials and bool(state.trials[number].end)


def _replayed(config: SweepConfig, record: TrialRecord) -> list[dict[str, Any]]:
    return replay(record.reports, lambda report: report.metrics.get(config.metric, math.nan), end=record.score)


def _name_of(trial: Any) -> str:
    return trial_name(trial.config[TRIAL]["number"])


def _environment() -> dict[str, str]:
    """What a trial's process needs to join this Ray with the same code."""
    context = ray.get_runtime_context()
    kept = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    return kept | {"RAY_ADDRESS": context.gcs_address}


def _share(concurrent: int) -> int:
    """Memory that a trial's keeper asks Ray for, so that just so many trials have room at a time.

    Keepers must hold no CPU or GPU: these are for the workers of their trials, which would never get theirs.
    """
    nodes = [node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    each = math.ceil(concurrent / max(1, len(nodes)))
    return int(0.95 * min(nodes) / each)


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Tune without its own tables and files: ours tell the same."""
    wanted = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_WARN_THRESHOLD_S": "30"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
