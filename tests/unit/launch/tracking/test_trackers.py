from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rayloom.errors import ConfigError, TrainingError
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.session import Tracking, require_packages, tracked
from rayloom.launch.tracking.status import read_status
from rayloom.launch.tracking.trackers import Background, Outcome, Patience
from tests.fakes_tracking import Hanging, KeptEvents, run_config, step_record

QUICK = Patience(pause_s=0.001)
EVENTS: list[Event] = [step_record(step) for step in range(1, 20)]


def fed(tracker: KeptEvents, events: Sequence[Event] = EVENTS, patience: Patience = QUICK) -> list[str]:
    """Feed a tracker to the end; the warnings there were."""
    warnings: list[str] = []
    background = Background(tracker, warn=warnings.append, patience=patience)
    for event in events:
        background(event)
    background.finish(Outcome("finished"))
    background.wait(time.monotonic() + 60)
    return warnings


def test_events_arrive_in_order_and_then_the_outcome() -> None:
    tracker = KeptEvents()
    assert fed(tracker) == []
    assert tracker.events == EVENTS
    assert tracker.outcomes == [Outcome("finished")]


def test_a_failure_that_passes_is_forgotten_and_loses_nothing() -> None:
    tracker = KeptEvents(failures=2)
    assert fed(tracker) == []
    assert tracker.events == EVENTS


def test_a_failure_that_stays_drops_the_tracker_with_one_warning_after_bounded_attempts() -> None:
    tracker = KeptEvents(failures=1000)
    warnings = fed(tracker)
    assert len(warnings) == 1
    assert "Kept is not fed any more: ConnectionError: not now" in warnings[0]
    assert tracker.calls == QUICK.attempts
    assert (tracker.events, tracker.outcomes) == ([], [])


def test_a_tracker_that_cannot_start_is_dropped() -> None:
    warnings = fed(KeptEvents(broken=True))
    assert len(warnings) == 1
    assert "ConnectionError: nobody there" in warnings[0]


def test_a_quiet_run_gives_signs_of_life() -> None:
    tracker = KeptEvents()
    background = Background(tracker, warn=pytest.fail, patience=Patience(beat_s=0.001))
    assert tracker.seen.wait(60)
    background.finish(Outcome("finished"))
    background.wait(time.monotonic() + 60)
    assert tracker.beats >= 1


def test_a_tracker_that_hangs_neither_blocks_events_nor_the_end() -> None:
    hanging, healthy, notes = Hanging(), KeptEvents(), list[Event]()
    tracking = Tracking([hanging, healthy], sink=notes.append, patience=QUICK)
    assert hanging.entered.wait(60)
    before = time.monotonic()
    for event in EVENTS:
        tracking(event)
    tracking.close(None, finish_s=0.3)
    assert time.monotonic() - before < 30
    assert healthy.events[: len(EVENTS)] == EVENTS
    assert [note.text for note in notes if isinstance(note, Note) and "Hanging" in note.text] == [
        "warning: Hanging is not fed any more: it did not finish in time, so its last figures may be missing. "
        "The run itself goes on."
    ]
    hanging.released.set()


def test_a_backlog_is_bounded() -> None:
    hanging, warnings = Hanging(), list[str]()
    background = Background(hanging, warn=warnings.append, patience=Patience(backlog=5))
    for event in EVENTS:
        background(event)
    assert len(warnings) == 1
    assert "5 events wait" in warnings[0]
    background.wait(time.monotonic() + 3600)  # does not wait for one that is dropped
    hanging.released.set()


def test_the_others_note_which_tracker_was_dropped() -> None:
    healthy, notes = KeptEvents(), list[Event]()
    tracking = Tracking([healthy, KeptEvents(name="Broken", broken=True)], sink=notes.append, patience=QUICK)
    assert healthy.seen.wait(60)
    tracking.close(None)
    assert healthy.events == notes
    assert "Broken" in str(notes[0])


def ended(path: Path, error: BaseException) -> None:
    with tracked(run_config(), place=str(path), run_name="a", sink=print) as tracking:
        tracking(step_record(10))
        raise error


@pytest.mark.parametrize(
    ("error", "state"), [(TrainingError("diverged"), "failed"), (KeyboardInterrupt("diverged"), "interrupted")]
)
def test_the_outcome_tells_how_the_run_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)):
        ended(tmp_path, error)
    folder = RunFolder(str(tmp_path))
    status = read_status(folder, "a")
    assert (status.state, status.step, status.error) == (state, 10, "diverged")
    assert "diverged" in (folder.read("report.html") or "")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_told_before_anything_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(**{name: True if name == "tensorboard" else {}})
    require_packages(config.tracking)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    require_packages(run_config().tracking)
    with pytest.raises(ConfigError, match=rf"tracking\.{name}.*pip install 'rayloom\[tracking\]'"):
        require_packages(config.tracking)
