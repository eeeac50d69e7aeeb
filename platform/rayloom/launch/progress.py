"""From the workers to the terminal: a board that rank 0 posts to, and a thread that reads it."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rayloom.launch.board import Board
from rayloom.training import EvalRecord, StepRecord

_POLL_S = 0.3


@dataclass(frozen=True)
class Note:
    """A line for people, such as "resumed at step 40"."""

    text: str


Event = StepRecord | EvalRecord | Note


class Sink(Protocol):
    """Takes events as they come."""

    def __call__(self, event: Event) -> None:
        """Show or keep one event."""


@dataclass(frozen=True)
class Awaited:
    """A sink that training waits for.

    After each validation it goes on once the checkpoint is safe and the sink has returned from all events up to there.
    """

    sink: Sink

    def __call__(self, event: Event) -> None:
        """See `Sink`."""
        self.sink(event)


def post(board: Any, event: Event) -> None:
    """Send an event to a `Board`, without waiting."""
    board.post.remote(pickle.dumps(event))


@contextlib.contextmanager
def watched(sink: Sink) -> Iterator[Any]:
    """A board whose events reach the sink, from another thread, until the block ends.

    Yields:
        Handle of a `Board` actor, to be passed to workers.
    """
    # Beside the driver: on another node it would die with that node, and the run would go on unheard.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def drain() -> None:
        for event in ray.get(board.take.remote()):
            sink(pickle.loads(event))

    def follow() -> None:
        while not stop.wait(_POLL_S):
            with contextlib.suppress(ray.exceptions.RayError):
                drain()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            drain()
        ray.kill(board)


class TerminalSink:
    """A live bar on a terminal, plain lines elsewhere (logs of a Ray job, CI)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting workers …", total=1)

    def __enter__(self) -> TerminalSink:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepRecord):
            self._step(event)
        elif isinstance(event, EvalRecord):
            self._console.print(evaluation_line(event), highlight=False)
            table = samples_table(event)
            if table is not None:
                self._console.print(table)
        else:
            self._console.print(event.text, highlight=False)

    def _step(self, record: StepRecord) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, completed=record.step, total=record.total_steps, description=figures(record))
        else:
            self._console.print(f"step {record.step}/{record.total_steps}  {figures(record)}", highlight=False)


def figures(record: StepRecord) -> str:
    """The figures of a step in one line."""
    minutes, seconds = divmod(round(record.eta_s), 60)
    return (
        f"epoch {record.epoch:.2f}  loss {record.loss:.4f}  lr {record.learning_rate:.2e}  "
        f"{record.tokens_per_s:.0f} tokens/s  ETA {minutes}:{seconds:02d}"
    )


def evaluation_line(record: EvalRecord) -> str:
    """The figures of an evaluation in one line."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    return f"validation at step {record.step} (epoch {record.epoch}): {values}"


def samples_table(record: EvalRecord) -> Table | None:
    """A few generated answers beside their references, None where there are none."""
    if not record.samples:
        return None
    table = Table("prompt", "answer", "reference")
    for sample in record.samples:
        table.add_row(*(escape(sample[name]) for name in ("prompt", "prediction", "reference")))
    return table


def both(*sinks: Callable[[Event], None]) -> Sink:
    """A sink that feeds several. One that fails is not fed any more: the others are told, and the run goes on."""
    fed = list(sinks)

    def send(event: Event) -> None:
        for sink in list(fed):
            try:
                sink(event)
            except (Exception, SystemExit) as error:  # rich exits where the terminal is a pipe that was closed
                fed.remove(sink)
                send(Note(f"warning: {_name_of(sink)} is not fed any more: {type(error).__name__}: {error}"))

    return send


def _name_of(sink: Callable[[Event], None]) -> str:
    return "the terminal" if isinstance(sink, TerminalSink) else getattr(sink, "__qualname__", type(sink).__name__)
