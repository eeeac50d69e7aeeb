"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rayloom.config import RunConfig, dump_yaml
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.figures import final_figures, record_figures, samples_markdown
from rayloom.launch.tracking.folder import Mirror, RunFolder
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord, StepRecord


class TensorBoard:
    """Scalars, sample generations and notes, without TensorFlow.

    Args:
        folder: Of the run; files go to its ``tensorboard`` folder.
        config: Kept as a text.
    """

    name = "TensorBoard"

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self._run, self._config = folder, config
        self._mirror: Mirror | None = None
        self._writer: Any = None
        self._step: int | None = None

    def start(self) -> None:
        """See `Tracker.start`. A resumed run gets a further file; viewers read all of them as one."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._mirror = self._mirror or self._run.mirror("tensorboard")
        self._writer = EventFileWriter(str(self._mirror.folder))
        self._add_text("config", f"```yaml\n{dump_yaml(self._config)}```", 0)

    def log(self, events: Sequence[Event]) -> None:
        """See `Tracker.log`."""
        for event in events:
            if isinstance(event, Note):
                self._add_text("notes", event.text, self._step or 0)
                continue
            self._forget_repeated(event)
            self._add_scalars(record_figures(event), event.step)
            if isinstance(event, EvalRecord) and event.samples:
                self._add_text("samples", samples_markdown(event), event.step)
        if events:
            self._writer.flush()
        if self._mirror is not None and any(isinstance(event, EvalRecord) for event in events):
            self._mirror.push()

    def finish(self, outcome: Outcome) -> None:
        """See `Tracker.finish`."""
        step = self._step or 0
        self._add_scalars(final_figures(outcome.metrics), step)
        self._add_text("outcome", "\n\n".join(filter(None, (outcome.state, outcome.artifact, outcome.error))), step)
        self._writer.close()
        if self._mirror is not None:
            self._mirror.close()

    def _forget_repeated(self, record: StepRecord | EvalRecord) -> None:
        """Tell viewers that steps after an interruption take the place of those that were lost with it."""
        goes_back = self._step is None or (isinstance(record, StepRecord) and record.step <= self._step)
        if goes_back:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._add(record.step, session_log=SessionLog(status=SessionLog.START))
        if goes_back or isinstance(record, StepRecord):
            self._step = record.step

    def _add_scalars(self, figures: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(step, summary=Summary(value=values))

    def _add_text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode("utf-8")])
        metadata = create_summary_metadata(display_name=tag, description="")
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as FileEvent

        self._writer.add_event(FileEvent(wall_time=time.time(), step=step, **content))
