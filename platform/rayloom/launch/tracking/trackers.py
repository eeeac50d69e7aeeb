"""What a tracker is, and how it is kept from harming a run: a thread of its own, few retries, then it is dropped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from rayloom.launch.progress import Event

Warn = Callable[[str], None]

_JOIN_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: ``interrupted``: by the user (Ctrl-C).
        artifact: Place of the artifact, if it was published.
        metrics: Figures of the best checkpoint and of training.
        error: What went wrong.
    """

    state: Literal["finished", "failed", "interrupted"]
    artifact: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class Tracker(Protocol):
    """Takes a run's events somewhere. All calls come from one thread; each may raise, and is then repeated."""

    name: str

    def start(self) -> None:
        """Open it; on a resumed run, go on where it was."""

    def log(self, events: Sequence[Event]) -> None:
        """Keep the events since the last call; there are none in a call that is only a sign of life."""

    def finish(self, outcome: Outcome) -> None:
        """Close it."""


@dataclass(frozen=True)
class Patience:
    """How much a tracker may fail.

    Attributes:
        attempts: Calls before it is dropped.
        pause_s: Seconds before the second attempt, doubled with each further one.
        beat_s: Seconds without events after which it gets a sign of life.
        backlog: Events that may wait for it.
    """

    attempts: int = 3
    pause_s: float = 0.5
    beat_s: float = 15.0
    backlog: int = 10_000


class Background:
    """A tracker behind a queue: feeding it never blocks and never raises.

    Args:
        tracker: Used in a thread of its own only.
        warn: Told once if it is dropped.
        patience: See `Patience`.
    """

    def __init__(self, tracker: Tracker, *, warn: Warn, patience: Patience | None = None) -> None:
        self._tracker, self._warn, self._patience = tracker, warn, patience or Patience()
        self._queue: queue.Queue[Event | Outcome] = queue.Queue(self._patience.backlog)
        self._dropped = threading.Event()
        # A daemon: a tracker that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"tracking {tracker.name}", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Queue an event (a `Sink`)."""
        self._put(event)

    def finish(self, outcome: Outcome) -> None:
        """Tell it how the run ended, without waiting."""
        self._put(outcome)

    def wait(self, give_up: float) -> None:
        """Wait until it is done.

        Args:
            give_up: When to stop waiting, on the clock of `time.monotonic`.
        """
        while self._thread.is_alive() and not self._dropped.is_set() and time.monotonic() < give_up:
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._drop("it did not finish in time, so its last figures may be missing")

    def _put(self, item: Event | Outcome) -> None:
        if self._dropped.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._drop(f"it does not answer, and {self._patience.backlog} events wait for it")

    def _drop(self, reason: str) -> None:
        if not self._dropped.is_set():
            self._dropped.set()
            self._warn(f"{self._tracker.name} is not fed any more: {reason}. The run itself goes on.")

    def _run(self) -> None:
        tracker = self._tracker
        alive = self._tried(tracker.start)
        while alive:
            events, outcome = self._taken()
            alive = self._tried(partial(tracker.log, events))
            if outcome is not None:
                if alive:
                    self._tried(partial(tracker.finish, outcome))
                return

    def _taken(self) -> tuple[list[Event], Outcome | None]:
        """All that waits, or nothing after a while."""
        events: list[Event] = []
        try:
            item = self._queue.get(timeout=self._patience.beat_s)
            while not isinstance(item, Outcome):
                events.append(item)
                item = self._queue.get_nowait()
        except queue.Empty:
            return events, None
        return events, item

    def _tried(self, call: Callable[[], None]) -> bool:
        for attempt in range(self._patience.attempts):
            if attempt and self._dropped.wait(self._patience.pause_s * 2 ** (attempt - 1)):
                return False
            try:
                call()
            except Exception as error:  # whatever a tracker's library raises
                problem = f"{type(error).__name__}: {error}"
            else:
                return not self._dropped.is_set()
        self._drop(" ".join(problem.split())[:300])
        return False
