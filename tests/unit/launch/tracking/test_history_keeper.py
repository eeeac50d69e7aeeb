from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.history_keeper import HistoryKeeper
from rayloom.launch.tracking.session import Tracking, build_trackers
from rayloom.launch.tracking.status import read_history
from rayloom.launch.tracking.trackers import Patience
from tests.fakes_tracking import KeptEvents, eval_record, run_config, step_record


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(f"memory://history-{uuid.uuid4().hex}/a" if request.param == "remote" else str(tmp_path / "a"))


def steps(folder: RunFolder) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_history(folder)]


def test_it_is_among_the_trackers_of_every_run(tmp_path: Path) -> None:
    trackers = build_trackers(run_config(), place=str(tmp_path), run_name="a")
    assert sum(isinstance(tracker, HistoryKeeper) for tracker in trackers) == 1


def test_the_history_spans_all_parts_of_a_run(folder: RunFolder) -> None:
    parts: list[list[Event]] = [
        [step_record(10), Note("hello"), step_record(20), eval_record(20)],
        [step_record(20), step_record(30)],
    ]
    for events in parts:
        tracking = Tracking([HistoryKeeper(folder)], sink=pytest.fail)
        for event in events:
            tracking(event)
        tracking.close(None)
    assert steps(folder) == [("step", 10), ("evaluation", 20), ("step", 20), ("step", 30)]


def test_a_line_that_a_kill_has_cut_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "a"))
    HistoryKeeper(folder).log([step_record(10), step_record(20)])
    file = tmp_path / "a" / "history.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    HistoryKeeper(folder).log([eval_record(20)])
    assert steps(folder) == [("step", 10), ("evaluation", 20)]


def test_a_disk_that_is_full_stops_neither_the_run_nor_the_other_trackers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where the run's folder should be")
    kept, notes = KeptEvents(), list[Event]()
    tracking = Tracking(
        [HistoryKeeper(RunFolder(str(tmp_path / "a"))), kept], sink=notes.append, patience=Patience(pause_s=0.001)
    )
    tracking(step_record(10))
    tracking.close(None)
    assert step_record(10) in kept.events
    (note,) = notes
    assert isinstance(note, Note)
    assert note.text.startswith("warning: the run's history is not fed any more: ")
