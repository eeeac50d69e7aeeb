"""The process of a trial: the driver of one training run, told by its keeper what to do (see `orders`)."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from rayloom.config import RunConfig
from rayloom.config.sweep import EVALUATION_PREFIX
from rayloom.errors import RayloomError, TrainingError
from rayloom.launch.sweeping.orders import HANDOVER, SCORE, STOP_SIGNAL, Order

if TYPE_CHECKING:
    from rayloom.launch.progress import Sink
    from rayloom.launch.runs import Run
    from rayloom.training import CheckpointStore

Tell = Callable[[Mapping[str, Any]], None]


class Keeper:
    """Who ordered this process, heard through its standard input.

    Args:
        orders: Standard input, after the order: a line for each time that the keeper listens again.
    """

    def __init__(self, orders: IO[str]) -> None:
        self._orders = orders
        self._listens: queue.SimpleQueue[str] = queue.SimpleQueue()  # signal handlers may put
        self._has_stopped = False

    def follow(self) -> None:
        """Hear the keeper until it is gone, be it killed; then die: a second attempt must not meet this one."""
        while line := self._orders.readline():
            self._listens.put(line)
        os._exit(1)

    def wait(self) -> None:
        """Until the keeper listens again: what it was told is settled."""
        if not self._has_stopped:
            self._listens.get()

    def stop_waiting(self) -> None:
        """For good: this process is to end."""
        self._has_stopped = True
        self._listens.put("")


def main(descriptor: int) -> None:
    """Do what standard input orders, and tell of it on a file descriptor."""
    order = Order.parse(sys.stdin.readline())
    keeper = Keeper(sys.stdin)
    threading.Thread(target=keeper.follow, name="keeper", daemon=True).start()
    signal.signal(STOP_SIGNAL, partial(_stop, keeper))
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as pipe:

        def tell(what: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(what) + "\n")

        try:
            do(order, tell, keeper.wait)
        except KeyboardInterrupt:
            _mark_stopped(order)
        except RayloomError as error:
            tell({"error": str(error)})
        except Exception:
            tell({"error": traceback.format_exc()})


def do(order: Order, tell: Tell, wait: Callable[[], None]) -> None:
    """Train the run of an order, from its last checkpoint if it was begun before.

    Args:
        order: What to do.
        tell: Takes each validation whose checkpoint is safe, and the end.
        wait: Returns once a validation that was told is settled.

    Raises:
        RayloomError: The run failed.
    """
    from rayloom.launch.progress import Awaited
    from rayloom.launch.runs import Run
    from rayloom.launch.sweeping.reports import Reports
    from rayloom.launch.training import run_training

    config = RunConfig.model_validate(order.config)
    run = Run.of(config)
    resume = run.exists()

    def told(report: dict[str, Any]) -> None:
        tell(report | {SCORE: score_of(report["metrics"], order.metric)})
        if order.waits:
            wait()

    reports = Reports(run.path, told)
    if resume:
        reports.tell_past(only_last=order.only_last)
    donor = None if resume else order.handover
    outcome = run_training(
        config,
        sink=Awaited(reports) if order.waits else reports,
        announce=lambda *_: None,
        resume=resume,
        begin=None if donor is None else lambda store, sink: _begin(run, donor, store, sink),
    )
    metrics = dict(outcome.metrics)
    if order.measured:
        from rayloom.launch.sweeping.measuring import measure

        measured = measure(config, outcome.artifact, order.metric, place=run.path)
        metrics |= {f"{EVALUATION_PREFIX}{name}": value for name, value in measured.items()}
    score = score_of(metrics, order.metric)
    if math.isnan(score):
        known = ", ".join(sorted(metrics))
        raise TrainingError(f"the finished run has no figure '{order.metric}'; it has {known}")
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)  # it ends by itself now
    tell(
        {
            "done": True,
            "steps": outcome.steps,
            "epochs": float(outcome.metrics.get("epoch", 0.0)),
            "metrics": metrics,
            "last": reports.last,
            "checkpoint": "",
            "artifact": outcome.artifact,
            SCORE: score,
        }
    )


def _begin(run: Run, donor: str, store: CheckpointStore, sink: Sink) -> None:
    """Take over from a donor, and note in the run's folder what it was: the checkpoint asked for may be gone."""
    from rayloom.launch.sweeping.handover import hand_over
    from rayloom.launch.tracking.folder import RunFolder

    commit = hand_over(f"{run.storage_path}/{donor}", store, sink)
    taken = f"{donor.split('/checkpoints/')[0]}/checkpoints/{commit.folder}"
    RunFolder(run.path).write(HANDOVER, json.dumps({"donor": donor, "taken": taken}))


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """The figure that decides; NaN where it is not known yet."""
    return float(metrics.get(metric, math.nan))


def _stop(keeper: Keeper, number: int, frame: FrameType | None) -> None:
    """Ray Train's own handler of Ctrl-C gives workers and their resources back; then unwind as Ctrl-C does."""
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    if callable(interrupt) and interrupt is not signal.default_int_handler:
        try:
            interrupt(signal.SIGINT, frame)
        except (SystemExit, KeyboardInterrupt):
            pass
        except Exception:
            traceback.print_exc()  # into the trial's log: what is not given back goes with this process
    keeper.stop_waiting()  # not before: workers that wait would go on
    raise KeyboardInterrupt


def _mark_stopped(order: Order) -> None:
    from rayloom.launch.tracking.folder import RunFolder
    from rayloom.launch.tracking.status import read_status, write_status

    output = order.config["output"]
    folder = RunFolder(f"{output['storage_path']}/{output['run_name']}")
    write_status(folder, replace(read_status(folder, output["run_name"]), state="interrupted"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.path.exists("/dev/nvidiactl"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main(int(sys.argv[1]))
