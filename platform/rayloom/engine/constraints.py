"""Masks of many constraints, computed in other threads while the model runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from rayloom.engine.masks import Mask, intersect
from rayloom.engine.request import Constraint, FinishReason

_MOST_THREADS = 4
_SHARE = 8
"""Sequences whose masks one task computes: a task costs more than a mask."""


def reason_of_end(constraints: Sequence[Constraint], reason: FinishReason) -> FinishReason:
    """Why an answer ended that was ended from outside.

    If it is whole at that moment, and nothing but the end of sequence could have followed, it has not been cut: JSON
    whose last bracket took the last token ends by ``stop``. What might have gone on (a number, a match of ``a+``) ends
    by the given reason though it is a whole answer, for nobody knows whether the model was done with it.

    Args:
        constraints: Of the sequence, in the state after its last token.
        reason: What ended it: ``length`` or ``time``.
    """
    return "stop" if any(constraint.is_over for constraint in constraints) else reason


def replayed(constraints: Sequence[Constraint], tokens: Sequence[int]) -> tuple[Constraint, ...]:
    """Forks of a request's constraints, in the state after these tokens of an answer."""
    forks = tuple(constraint.fork() for constraint in constraints)
    for constraint in forks:
        for token in tokens:
            constraint.advance(token)
    return forks


class MaskPool:
    """Next masks of sequences, on the way while the step that needs them runs.

    Only the thread that drives the engine calls it. Between `prepare` and `collect` constraints of a sequence must not
    be advanced or asked anything; whoever does so in between calls `settle` first, and whoever drops a sequence calls
    `forget`.

    Args:
        num_threads: Threads; half as many as cores where not given, but few: the model needs the cores, too.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        threads = num_threads or max(1, min(_MOST_THREADS, _num_cores() // 2))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rayloom-masks")
        self._running: dict[tuple[int, ...], tuple[Sequence[Constraint], Future[list[Mask | None]], int]] = {}

    def prepare(self, sequences: Sequence[Sequence[Constraint]]) -> None:
        """Start on the masks of these sequences, each given by its constraints."""
        waiting = [constraints for constraints in sequences if constraints]
        for at in range(0, len(waiting), _SHARE):
            share = waiting[at : at + _SHARE]
            future = self._executor.submit(_masks, share)
            for place, constraints in enumerate(share):
                # The constraints are kept with it: an id must not come back for another object.
                self._running[_key(constraints)] = (constraints, future, place)

    def collect(self, sequences: Sequence[Sequence[Constraint]]) -> list[Mask | None]:
        """The mask of each sequence: prepared, or computed now.

        Returns:
            Per sequence what all its constraints allow, None for everything; all zero where they contradict.
        """
        found: list[Mask | None] = []
        for constraints in sequences:
            running = self._running.pop(_key(constraints), None)
            found.append(running[1].result()[running[2]] if running else _mask(constraints))
        return found

    def forget(self, sequences: Sequence[Sequence[Constraint]]) -> None:
        """Drop what was prepared for sequences that ended."""
        for constraints in sequences:
            self._running.pop(_key(constraints), None)

    def settle(self, sequences: Sequence[Sequence[Constraint]]) -> None:
        """Drop what was prepared for these sequences, once no thread is at it any more."""
        running = [self._running.pop(_key(constraints), None) for constraints in sequences]
        wait([entry[1] for entry in running if entry])

    def close(self) -> None:
        """End the threads."""
        self._running.clear()
        self._executor.shutdown(cancel_futures=True)


def _num_cores() -> int:
    """Those that this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _masks(sequences: Sequence[Sequence[Constraint]]) -> list[Mask | None]:
    return [_mask(constraints) for constraints in sequences]


def _mask(constraints: Sequence[Constraint]) -> Mask | None:
    return intersect([constraint.mask() for constraint in constraints])


def _key(constraints: Sequence[Constraint]) -> tuple[int, ...]:
    return tuple(id(constraint) for constraint in constraints)
