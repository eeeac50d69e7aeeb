"""Where a worker's news go: figures to the board, checkpoints to the store, files into the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayloom.config import RunConfig, TrainingConfig
from rayloom.launch.progress import Event, Note, post
from rayloom.training import CheckpointSaver, EvalRecord, Progress, StepRecord, Storage


class WorkerReporter:
    """A `Reporter` of one worker.

    Args:
        config: The run.
        board: Handle of a `Board`.
        place: The run's folder or URI.
        saver: Takes this worker's part of checkpoints.
        is_first: Whether this is rank 0, the only one that posts.
    """

    def __init__(self, config: RunConfig, board: Any, *, place: str, saver: CheckpointSaver, is_first: bool) -> None:
        self._training, self._board, self._place = config.training, board, place
        self._saver, self._is_first = saver, is_first

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

    def checkpoint(self, folder: Path, progress: Progress, metrics: dict[str, float]) -> None:
        """See `Reporter.checkpoint`. Returns while the files are still on their way."""
        self._saver.save(folder, progress, metrics, score_of(metrics, self._training))

    def _post(self, event: Event) -> None:
        if self._is_first:
            post(self._board, event)


def score_of(metrics: dict[str, float], training: TrainingConfig) -> float | None:
    """Figure by which checkpoints are compared, larger is better; None if they were not evaluated."""
    value = metrics.get(training.metric_for_best)
    if value is None:
        return None
    return value if training.larger_is_better else -value
