"""Events of a small run, and trackers that misbehave."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from rayloom.config import RunConfig
from rayloom.launch.progress import Event
from rayloom.launch.tracking.trackers import Outcome
from rayloom.training import EvalRecord, StepRecord

_BLOCK, _FILE_HEADER, _CHUNK_HEADER = 32768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4
SAMPLE = {"prompt": "<b>Who|what?</b>", "prediction": "the\nmiller", "reference": "a miller"}


def run_config(**tracking: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"model": {"name": "t5-small"}, "dataset": {"train_file": "rows.json"}, "tracking": tracking}
    )


def step_record(step: int, *, loss: float | None = None, total: int = 40) -> StepRecord:
    return StepRecord(
        step=step,
        total_steps=total,
        epoch=step / 20,
        loss=5.0 - step / 20 if loss is None else loss,
        learning_rate=1e-4,
        grad_norm=1.5,
        tokens_per_s=900.0,
        eta_s=3.0,
        memory_bytes=3 << 29,
    )


def eval_record(step: int, *, loss: float = 2.0) -> EvalRecord:
    return EvalRecord(step, step // 20, {"loss": loss, "rougeL": 0.25}, (SAMPLE,))


@dataclass
class KeptEvents:
    """A tracker that keeps what it gets.

    Attributes:
        failures: Calls of `log` that raise before one succeeds.
        seen: Set once it has got something, or been given a sign of life.
        broken: Raise at the start.
    """

    name: str = "Kept"
    failures: int = 0
    broken: bool = False
    events: list[Event] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    seen: threading.Event = field(default_factory=threading.Event)
    beats: int = 0
    calls: int = 0

    def start(self) -> None:
        if self.broken:
            raise ConnectionError("nobody\nthere")

    def log(self, events: Sequence[Event]) -> None:
        self.calls += 1
        if events and self.failures:
            self.failures -= 1
            raise ConnectionError("not now")
        self.beats += not events
        self.events += events
        self.seen.set()

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@dataclass
class Hanging:
    """A tracker whose every call waits until it is let go."""

    name: str = "Hanging"
    entered: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.entered.set()
        self.released.wait()

    def log(self, events: Sequence[Event]) -> None:
        raise AssertionError("called after it was dropped")

    def finish(self, outcome: Outcome) -> None:
        raise AssertionError("called after it was dropped")


def wandb_records(path: Path) -> Iterator[Record]:
    """The records of an offline run's file: LevelDB's log format after a header of seven bytes."""
    data, at, whole = path.read_bytes(), _FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while at + _CHUNK_HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK_HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _CHUNK_HEADER])
        at += _CHUNK_HEADER
        whole = data[at : at + length] if kind in (_FULL, _FIRST) else whole + data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record
