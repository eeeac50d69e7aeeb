"""Where a worker's news go: figures to the board, checkpoints to the store, files into the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from rayloom.config import RunConfig, TrainingConfig
from rayloom.launch.progress import Event, Note, post
from rayloom.training import CheckpointSaver, EvalRecord, Part, Progress, StepRecord, Storage


class WorkerReporter:
    """A `Reporter` of one worker.

    Args:
        config: The run.
        board: Handle of a `Board`.
        place: The run's folder or URI.
        saver: Takes this worker's part of checkpoints.
        is_first: Whether this is rank 0, the only one that posts.
        waits: Whether training goes on from a validation only when the driver has dealt with it, see `Awaited`.
    """

    def __init__(
        self, config: RunConfig, board: Any, *, place: str, saver: CheckpointSaver, is_first: bool, waits: bool = False
    ) -> None:
        self._training, self._board, self._place = config.training, board, place
        self._saver, self._is_first, self._waits = saver, is_first, waits

    def note(self, text: str) -> None:
        """A line for people."""
        self._post(Note(text))

    def stepped(self, record: StepRecord) -> None:
        """See `Reporter.stepped`."""
        self._saver.check()
        self._post(record)

    def evaluated(self, record: EvalRecord) -> None:
        """See `Reporter.evaluated`."""
        self._post(record)

    def keep_file(self, path: Path) -> None:
        """See `Reporter.keep_file`."""
        Storage(self._place).upload(path, path.name)

    def checkpoint(self, part: Part, progress: Progress, metrics: dict[str, float]) -> None:
        """See `Reporter.checkpoint`. Returns while the files are on their way, unless the driver is waited for."""
        self._saver.save(part, progress, metrics, score_of(metrics, self._training))
        if self._waits and metrics and self._is_first:  # the other ranks wait for this one in the next step
            self._saver.flush()
            ray.get(self._board.settled.remote())

    def _post(self, event: Event) -> None:
        if self._is_first:
            post(self._board, event)


def score_of(metrics: dict[str, float], training: TrainingConfig) -> float | None:
    """Figure by which checkpoints are compared, larger is better; None if they were not evaluated."""
    value = metrics.get(training.metric_for_best)
    if value is None:
        return None
    return value if training.larger_is_better else -value
