from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.event_files import TensorBoard
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.trackers import Outcome
from tests.fakes_tracking import eval_record, run_config, step_record


def written(place: str, *batches: list[Event], outcome: Outcome | None = None) -> None:
    tracker = TensorBoard(RunFolder(place), run_config(tensorboard=True))
    tracker.start()
    for events in batches:
        tracker.log(events)
    tracker.finish(outcome or Outcome("finished"))


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars(accumulator: EventAccumulator, tag: str) -> dict[int, float]:
    events = accumulator.Scalars(tag)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def texts(accumulator: EventAccumulator, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors(tag)]


def test_the_reader_finds_figures_samples_notes_config_and_outcome(tmp_path: Path) -> None:
    outcome = Outcome("finished", artifact="/runs/a/artifact", metrics={"loss": 1.5})
    written(
        str(tmp_path),
        [Note("resumed at step 0"), step_record(10), step_record(20)],
        [eval_record(20), step_record(30)],
        outcome=outcome,
    )
    found = read(tmp_path / "tensorboard")
    assert scalars(found, "train/loss") == {10: 4.5, 20: 4.0, 30: 3.5}
    assert scalars(found, "train/learning_rate")[10] == pytest.approx(1e-4)
    assert scalars(found, "train/memory_bytes")[30] == 3 << 29
    assert scalars(found, "validation/rougeL") == {20: 0.25}
    assert scalars(found, "final/loss") == {30: 1.5}
    assert "t5-small" in texts(found, "config")[0]
    assert r"| <b>Who\|what?</b> | the miller | a miller |" in texts(found, "samples")[0]
    assert texts(found, "notes") == ["resumed at step 0"]
    assert "/runs/a/artifact" in texts(found, "outcome")[0]


def test_steps_repeated_after_an_interruption_take_the_place_of_the_lost_ones(tmp_path: Path) -> None:
    first = [step_record(10, loss=9.0), step_record(20, loss=8.0), eval_record(20), step_record(30, loss=7.0)]
    again = [step_record(20, loss=2.0), eval_record(20, loss=3.0), step_record(30, loss=1.0)]
    # A worker was replaced in the middle; then the driver was killed, and the run resumed.
    written(str(tmp_path), first, again)
    written(str(tmp_path), [step_record(30, loss=0.5)])
    found = read(tmp_path / "tensorboard")
    assert scalars(found, "train/loss") == {10: 9.0, 20: 2.0, 30: 0.5}
    assert scalars(found, "validation/loss") == {20: 3.0}


def test_a_run_behind_a_uri_gets_its_files_too(tmp_path: Path) -> None:
    place = f"memory://tracking-{uuid.uuid4().hex}/run"
    written(place, [step_record(10), eval_record(10)])
    fs, root = fsspec.core.url_to_fs(place)
    fs.get(f"{root}/tensorboard/", f"{tmp_path}/", recursive=True)
    assert scalars(read(tmp_path), "validation/loss") == {10: 2.0}
