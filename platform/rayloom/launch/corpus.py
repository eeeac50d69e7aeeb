"""Reads and tokenises a big corpus with all of Ray: pieces of it are plain tasks, whose results lie on disk."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from rayloom.config import RunConfig
from rayloom.data import Workers, this_process, way_of
from rayloom.data.work import Piece, Result
from rayloom.errors import RayloomError, ServiceError
from rayloom.launch.entry import do_piece
from rayloom.launch.progress import Note, Sink
from rayloom.launch.session import ray_session

_TELL_EVERY_S = 5.0
_WORTH_A_PROCESS = 8 << 20
"""Another process takes about as long to start as one process does for so many bytes."""
_MIB = 1 << 20


@contextlib.contextmanager
def corpus_workers(config: RunConfig, sink: Sink, *, verbose: bool = False) -> Iterator[Workers]:
    """Who prepares the rows of a run: all of Ray for a streamed corpus, else this process.

    Args:
        config: The run.
        sink: Told how far the work is.
        verbose: Show the workers' own output.
    """
    if not way_of(config.dataset).streamed:
        yield this_process
        return
    with ray_session(config.distributed, verbose=verbose):
        yield RayWorkers(lambda text: sink(Note(text)))


class RayWorkers:
    """`Workers` that are Ray tasks of one CPU each, on whatever nodes there are.

    Args:
        told: Takes a line for people now and then.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told

    def __call__(
        self, what: str, work: Callable[[Piece], Result], pieces: Sequence[Piece], sizes: Sequence[int]
    ) -> Iterator[Result]:
        """See `Workers`."""
        if not pieces:
            return
        shared, waiting = ray.put(work), deque(pieces)
        running: deque[Any] = deque()
        told = _Progress(self._told, what, sizes)
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        most = min(2 * cpus, 1 + sum(sizes) // _WORTH_A_PROCESS)
        # Where one fails, those under way end by themselves, and their pieces lie ready for the next attempt: a
        # `ray.cancel` that meets a task's answer ends this process (a failed check in Ray 2.60's task_manager.cc).
        while waiting or running:
            while waiting and len(running) < most:
                running.append(do_piece.remote(shared, waiting.popleft()))
            yield _result(running.popleft())
            told.one_more()


def _result(task: Any) -> Any:
    try:
        result = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise ServiceError(f"a task failed: {error}") from error
    except ray.exceptions.RayError as error:
        raise ServiceError(f"a task was lost: {error}") from error
    if isinstance(result, RayloomError):
        raise result
    return result


class _Progress:
    """Says how far the work is, a few times a minute."""

    def __init__(self, told: Callable[[str], None], what: str, sizes: Sequence[int]) -> None:
        self._told, self._what, self._sizes = told, what, sizes
        self._start = self._last = time.monotonic()
        self._done = 0

    def one_more(self) -> None:
        """Count a piece."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < _TELL_EVERY_S and self._done < len(self._sizes):
            return
        self._last = now
        size, total = sum(self._sizes[: self._done]), max(1, sum(self._sizes))
        speed = size / _MIB / max(now - self._start, 1e-9)
        self._told(
            f"{self._what}: {size / total:.0%} of {total / _MIB:.0f} MiB, piece {self._done} of {len(self._sizes)}, "
            f"{speed:.1f} MiB/s"
        )
