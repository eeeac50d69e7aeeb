"""The trackers of a run, from its first event to its end."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from rayloom.config import RunConfig, TrackingConfig
from rayloom.errors import ConfigError
from rayloom.launch.progress import Event, Note, Sink
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.history_keeper import HistoryKeeper
from rayloom.launch.tracking.page_keeper import PageKeeper
from rayloom.launch.tracking.status_keeper import StatusKeeper
from rayloom.launch.tracking.trackers import Background, Outcome, Patience, Tracker

_FINISH_S = 60.0


class Tracking:
    """A `Sink` that feeds all trackers. Feeding never blocks and never raises.

    Args:
        trackers: To feed, each in a thread of its own.
        sink: Told, as a note, of each tracker that is dropped.
        patience: How much each may fail.
    """

    def __init__(self, trackers: Sequence[Tracker], *, sink: Sink, patience: Patience | None = None) -> None:
        def warn(text: str) -> None:
            note = Note(f"warning: {text}")
            sink(note)
            self(note)

        self._parts: list[Background] = []
        for tracker in trackers:
            self._parts.append(Background(tracker, warn=warn, patience=patience))
        self._outcome = Outcome("finished")

    def __call__(self, event: Event) -> None:
        """Feed an event to all."""
        for part in list(self._parts):
            part(event)

    def published(self, artifact: str, metrics: dict[str, float]) -> None:
        """Tell what the run has made; trackers get it at the end."""
        self._outcome = replace(self._outcome, artifact=artifact, metrics=metrics)

    def close(self, error: BaseException | None, *, finish_s: float = _FINISH_S) -> None:
        """Let trackers finish, all together in at most ``finish_s`` seconds."""
        outcome = self._outcome if error is None else replace(self._outcome, state=_state(error), error=_text(error))
        for part in self._parts:
            part.finish(outcome)
        give_up = time.monotonic() + finish_s
        for part in self._parts:
            part.wait(give_up)


@contextlib.contextmanager
def tracked(config: RunConfig, *, place: str, run_name: str, sink: Sink) -> Iterator[Tracking]:
    """The trackers of a run, until the block ends; they learn how it ended.

    Args:
        config: Its resolved config.
        place: Folder or URI of the run.
        run_name: What trackers call it.
        sink: Told of trackers that are dropped.

    Yields:
        To be fed with events, and told of the artifact.
    """
    tracking = Tracking(build_trackers(config, place=place, run_name=run_name), sink=sink)
    try:
        yield tracking
    except BaseException as error:
        tracking.close(error)
        raise
    tracking.close(None)


def build_trackers(config: RunConfig, *, place: str, run_name: str) -> list[Tracker]:
    """Status, history and page, which every run has, and what its config asks for. Opens nothing yet."""
    folder, wanted = RunFolder(place), config.tracking
    trackers: list[Tracker] = [
        StatusKeeper(folder, run_name, config.training),
        HistoryKeeper(folder),
        PageKeeper(folder, config, run_name=run_name),
    ]
    if wanted.tensorboard:
        from rayloom.launch.tracking.event_files import TensorBoard

        trackers.append(TensorBoard(folder, config))
    if wanted.mlflow is not None:
        from rayloom.launch.tracking.mlflow_runs import Mlflow

        trackers.append(Mlflow(folder, config, wanted.mlflow, run_name=run_name))
    if wanted.wandb is not None:
        from rayloom.launch.tracking.wandb_runs import Wandb

        trackers.append(Wandb(folder, config, wanted.wandb, run_name=run_name))
    return trackers


def require_packages(tracking: TrackingConfig) -> None:
    """Refuse trackers whose packages are not installed, before anything starts.

    Raises:
        ConfigError: Names the key and what to install.
    """
    asked = {"tensorboard": tracking.tensorboard, "mlflow": tracking.mlflow, "wandb": tracking.wandb}
    for package, wanted in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the package '{package}' is not installed: pip install 'rayloom[tracking]'",
                key=f"tracking.{package}",
            )


def _state(error: BaseException) -> Literal["failed", "interrupted"]:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
