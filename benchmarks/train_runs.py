"""The training benchmark's tables of whole runs on Ray: more workers, checkpoints, resuming. See `bench_train.py`."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from bench_train_overhead import Records, bare_worker, run_in_ray
from measure import print_model, print_verdict
from rich.console import Console
from train_sides import Turn
from train_tables import show, verdict
from train_work import ANSWERS, config_of

from rayloom.config import RunConfig, dump_yaml
from rayloom.launch import Prepared, prepare, ray_session
from rayloom.training import StepRecord

Options = argparse.Namespace

WORKERS_TARGET, SAVE_TARGET, RESUME_TARGET_S = 1.6, 0.02, 40.0
WARM_UP = 10
"""First steps of a run that do not count: memory is found, and kernels for shapes of batches are made."""
_TIMES = 4
"""Runs on Ray have that many times the steps of a turn in this process."""
_LOGGED = 8
"""Steps between two records of runs on several workers, who wait for each other to make one; the default is 10."""
_ONE, _TWO = "1 worker", "2 workers"
_ALONE, _APART = "1 process, no Ray", "2 processes, nothing exchanged"
_SAVE_EVERY, _SHADOW, _PER_STEPS = 30, 10, 100
"""Steps between two saves; steps after a save that may pay for it; steps per save that the cost is told for."""
_RUN = "killed"
_PROGRAM = "from rayloom.cli.app import main; main()"
_SAVED, _STEP = re.compile(r"^saved step (\d+)"), re.compile(r"^step (\d+)/")


def workers_table(console: Console, options: Options) -> None:
    """The same rows per worker on one worker and on two, through Ray Train."""
    configs = {name: _run_of(options, count) for name, count in ((_ONE, 1), (_TWO, 2))}
    prepared = prepare(configs[_TWO])
    print_model(console, prepared)
    turns: dict[str, list[Turn]] = {_ONE: [], _TWO: [], _ALONE: [], _APART: []}
    with ray_session(configs[_TWO].distributed):
        for number in range(options.rounds):
            for name in (_ONE, _TWO)[:: -1 if number % 2 else 1]:
                turns[name].append(_turn(run_in_ray(configs[name], prepared)))
    for _ in range(options.rounds):
        turns[_ALONE].append(_apart(1, configs[_ONE], prepared))
        turns[_APART].append(_apart(2, configs[_ONE], prepared))
    show(console, turns, f"gpt_neo: {options.rows_per_step} rows a step and worker, one thread each")
    verdict(console, turns, _TWO, _ONE, WORKERS_TARGET)
    most = statistics.median(two.speed / one.speed for two, one in zip(turns[_APART], turns[_ALONE], strict=True))
    console.print(f"({_APART}) / ({_ALONE}): {most:.2f} x, the most that this machine has to give", highlight=False)
    console.print()


def _apart(count: int, config: RunConfig, prepared: Prepared) -> Turn:
    """As many processes at the same time, each with a run of one worker, without a Ray."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(bare_worker, config, prepared.source, prepared.train) for _ in range(count)]
        ended = [_turn(run.result()) for run in runs]
    seconds = statistics.fmean(turn.seconds for turn in ended)
    return Turn(sum(turn.tokens for turn in ended), seconds, statistics.fmean(turn.loss for turn in ended))


def _run_of(options: Options, workers: int) -> RunConfig:
    """Two passes over the same rows, and a step more: the first pass warms up."""
    steps = -(-_TIMES * options.steps // _LOGGED) * _LOGGED  # of a pass of two workers; one needs twice as many
    rows = 2 * options.rows_per_step * steps
    training = {"logging_steps": _LOGGED, "max_steps": 4 * steps // workers + 1, "num_epochs": 3}
    return config_of(
        "gpt_neo",
        ANSWERS | {"max_train_rows": rows},
        batch_size=options.rows_per_step,
        training=training | {"eval_every_epochs": 100},
        distributed={"num_workers": workers, "backend": "plain"},
    )


def _turn(records: Records) -> Turn:
    """The second pass."""
    total = records.steps[-1].total_steps
    second = [step for step in records.steps if total // 2 < step.step < total]
    seconds = [duration(step) * _LOGGED for step in second]
    tokens = sum(step.tokens_per_s * each for step, each in zip(second, seconds, strict=True))
    return Turn(round(tokens), sum(seconds), records.steps[-1].loss)


def duration(step: StepRecord) -> float:
    """Seconds of a step since the record before this one; the last one of a run does not tell."""
    return step.eta_s / (step.total_steps - step.step)


@dataclass
class Said:
    """A run in a process of its own, and its lines with the times when they came."""

    process: subprocess.Popen[str]
    began: float

    def lines(self) -> Iterator[tuple[float, str]]:
        """Seconds since the start, and a line."""
        assert self.process.stdout is not None
        tail: list[str] = []
        for line in self.process.stdout:
            tail = [*tail[-19:], line]
            yield time.perf_counter() - self.began, line.rstrip()
        raise SystemExit("the run ended early:\n" + "".join(tail))

    def wait_for(self, pattern: re.Pattern[str], step: int) -> float:
        """Seconds from the start to the line that names this step or a later one."""
        for seconds, line in self.lines():
            match = pattern.match(line)
            if match and int(match[1]) >= step:
                return seconds
        raise AssertionError


def checkpoint_table(console: Console, options: Options) -> None:
    """What a save costs the steps beside it, and how long a killed run takes to train again."""
    saves = 2 * options.rounds + 1
    training = {
        "logging_steps": 1,
        "checkpoint_every_steps": _SAVE_EVERY,
        "num_epochs": 100,
        "eval_every_epochs": 100,
    }
    with tempfile.TemporaryDirectory(prefix="rayloom-bench-") as folder:
        output = {"storage_path": folder, "run_name": _RUN}
        config = config_of("gpt_neo", ANSWERS, batch_size=options.rows_per_step, training=training, output=output)
        print_model(console, prepare(config))
        path = Path(folder) / "config.yaml"
        path.write_text(dump_yaml(config), encoding="utf-8")
        last = saves * _SAVE_EVERY
        with _rayloom("train", str(path)) as run:
            run.wait_for(_STEP, last + _SHADOW + 1)
        show_saves(console, Path(folder) / _RUN / "history.jsonl", last)
        resumed = []
        for _ in range(options.rounds):
            with _rayloom("train", str(path), "--resume", _RUN) as run:
                resumed.append(run.wait_for(_STEP, last + 1))
        middle = statistics.median(resumed)
        text = f"{middle:.1f} s ({min(resumed):.1f} to {max(resumed):.1f})"
        label = "from `rayloom train --resume` to the first step's line"
        print_verdict(console, label, text, f"< {RESUME_TARGET_S:g} s", met=middle < RESUME_TARGET_S)
    console.print()


def show_saves(console: Console, history: Path, last: int) -> None:
    """Seconds that the steps after a save took longer than steps of as many tokens that no save is near."""
    entries = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    records = [
        StepRecord(**{k: v for k, v in each.items() if k != "kind"}) for each in entries if each["kind"] == "step"
    ]
    times = {record.step: duration(record) for record in records}
    shadow = {save + place for save in range(_SAVE_EVERY, last + 1, _SAVE_EVERY) for place in range(1, _SHADOW + 1)}
    tokens = {record.step: record.tokens_per_s * times[record.step] for record in records}
    calm = [step for step in times if step > WARM_UP and step not in shadow]
    per_token, fixed = statistics.linear_regression([tokens[step] for step in calm], [times[step] for step in calm])
    late = {step: times[step] - fixed - per_token * tokens[step] for step in shadow}
    costs = [
        sum(late[save + place] for place in range(1, _SHADOW + 1)) for save in range(_SAVE_EVERY, last + 1, _SAVE_EVERY)
    ]
    cost, step_s = statistics.median(costs), statistics.fmean(times[step] for step in calm)
    share = cost / (_PER_STEPS * step_s)
    console.print(
        f"{len(calm)} calm steps of {step_s:.3f} s on average; {len(costs)} saves cost {cost:.2f} s "
        f"({min(costs):.2f} to {max(costs):.2f}) in the {_SHADOW} steps after them",
        highlight=False,
    )
    label = f"one save per {_PER_STEPS} steps: share of training time"
    print_verdict(console, label, f"{share:.2%}", f"< {SAVE_TARGET:.0%}", met=share < SAVE_TARGET)


@contextmanager
def _rayloom(*arguments: str) -> Iterator[Said]:
    """``rayloom``; killed at the end, with the local Ray that it started."""
    environment: dict[str, Any] = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"COLUMNS": "200"},
    )
    try:
        yield Said(process, began)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, orphans = psutil.wait_procs(family, timeout=10)
        for orphan in orphans:  # started by us; they must not disturb what comes next
            orphan.kill()
