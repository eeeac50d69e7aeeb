"""Saving beside training: whatever happens at whatever moment, the previous checkpoint stays usable."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from rayloom.errors import TrainingError
from rayloom.training import Part, Progress
from rayloom.training.saver import CheckpointSaver, Member
from rayloom.training.storage import Storage
from tests.fakes_store import content, in_thread, save, save_rank, store_at

CHANGING = ("take", "write", "remove_file", "remove_folder")


class Killed(BaseException):
    """Ends a save as a kill does: nobody catches it."""


class Trap:
    """Strikes at the n-th change of a storage, before it or in its midst."""

    def __init__(self, monkeypatch, strike, at: int, *, midst: bool) -> None:
        self.changes = 0
        for name in CHANGING:
            monkeypatch.setattr(Storage, name, self._wrapped(getattr(Storage, name), strike, at, midst))

    def _wrapped(self, method, strike, at, midst):
        def call(storage, *args):
            self.changes += 1
            if self.changes == at:
                if midst:
                    _half(storage, method.__name__, *args)
                strike()
            return method(storage, *args)

        return call


def _half(storage: Storage, kind: str, *args) -> None:
    """What a kill in the midst of an operation leaves: a file cut short, a folder half removed.

    Small files are written whole or not at all, by a rename; of those only the hidden new file is left.
    """
    name = args[-1] if kind == "take" else args[0]
    path = storage.local(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "take":
        path.write_bytes(args[0].read_bytes()[: args[0].stat().st_size // 2])
    elif kind == "write":
        path.with_name(f".{path.name}.new").write_bytes(args[1][: len(args[1]) // 2])
    elif kind == "remove_folder" and path.exists():
        next(each for each in sorted(path.rglob("*")) if each.is_file()).unlink()


def upload(store, work: Path, step: int, *, keep: int) -> None:
    """What the threads of two ranks do, in this one: so that a kill strikes where it is raised."""
    for rank in (1, 0):
        folder = work / f"{step}-{rank}"
        for name, data in content(step, rank).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        saver = CheckpointSaver(store, Member("a1", rank, 2), keep=keep, saved=lambda commit: None)
        saver._upload(folder, Progress(step=step, world_size=2), {"loss": 1.0 / step}, -1.0 / step)


def prepared(root: Path):
    """A store with steps 10 and 20, of which the next save removes the first."""
    store, _ = store_at(root / "run")
    store.take_over("a1")
    save(store, root, 10, score=-0.1)
    save(store, root, 20, score=-0.05)
    return store


def count_changes(monkeypatch, tmp_path) -> int:
    store = prepared(tmp_path / "count")
    with monkeypatch.context() as patch:
        trap = Trap(patch, lambda: None, -1, midst=False)
        upload(store, tmp_path / "count", 30, keep=2)
    return trap.changes


def assert_usable(root: Path) -> None:
    store, notes = store_at(root / "run")
    commit = store.take_over("b2")
    assert commit.step in (20, 30)
    assert store.best().step in (10, 20, 30)
    assert notes == []  # an interrupted save is no damage
    with store.opened(commit) as folder:
        for name, data in (content(commit.step, 0) | content(commit.step, 1)).items():
            assert (folder / name).read_bytes() == data
    save(store, root, 40, attempt="b2", keep=1, score=1.0)
    assert {path.name for path in (root / "run").glob("step-*")} == {"step-00000040-b2"}


@pytest.mark.parametrize("midst", [False, True])
def test_killed_at_any_write_the_previous_one_is_usable(monkeypatch, tmp_path, midst):
    def strike():
        raise Killed

    changes = count_changes(monkeypatch, tmp_path)
    assert changes == 13  # 7 files, 2 lists, COMMIT, INDEX, and the mark and the folder of step 10 removed
    for at in range(1, changes + 1):
        root = tmp_path / str(at)
        store = prepared(root)
        with monkeypatch.context() as patch:
            Trap(patch, strike, at, midst=midst)
            with pytest.raises(Killed):
                upload(store, root, 30, keep=2)
        assert_usable(root)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_dies_at_any_write_leaves_the_previous_one(monkeypatch, tmp_path):
    for at in range(1, count_changes(monkeypatch, tmp_path) + 1):
        root = tmp_path / str(at)
        store = prepared(root)
        child = os.fork()
        if child == 0:
            try:
                Trap(monkeypatch, lambda: os._exit(9), at, midst=True)
                upload(store, root, 30, keep=2)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert_usable(root)


def test_rank_0_waits_for_the_others_and_then_commits(tmp_path):
    store, _ = store_at(tmp_path / "run")
    saved = []
    first = in_thread(
        lambda: save_rank(store, tmp_path, 10, Member("a1", 0, 3), saved=lambda commit: saved.append(commit.step))
    )
    save_rank(store, tmp_path, 10, Member("a1", 2, 3))
    assert store.latest() is None
    save_rank(store, tmp_path, 10, Member("a1", 1, 3))
    first.join()
    assert saved == [10]
    assert [sorted(part) for part in store.latest().ranks] == [sorted(content(10, rank)) for rank in range(3)]


def test_training_does_not_wait_for_an_upload_but_the_next_save_does(monkeypatch, tmp_path):
    store, _ = store_at(tmp_path / "run")
    gate, whole = threading.Event(), Storage.take

    def slow(storage, source, name):
        gate.wait(20)
        return whole(storage, source, name)

    monkeypatch.setattr(Storage, "take", slow)
    with CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda commit: None) as saver:
        for step in (10, 20):
            folder = tmp_path / str(step)
            folder.mkdir()
            (folder / "state.json").write_text(str(step))
            if step == 20:
                assert store.latest() is None
                gate.set()
            saver.save(Part(folder), Progress(step=step), {}, None)
            assert list(folder.iterdir()) == []  # the caller may remove it
        assert store.latest().step >= 10  # the first one was flushed
    assert store.latest().step == 20
    assert list(tmp_path.glob("rayloom-upload-*")) == []


@pytest.mark.parametrize("ending", ["save", "check", "flush"])
def test_a_failed_upload_ends_the_run_with_its_reason(monkeypatch, tmp_path, ending):
    store, _ = store_at(tmp_path / "run")

    def full(storage, source, name):
        raise TrainingError("checkpoint storage: cannot write: no space left on device")

    monkeypatch.setattr(Storage, "take", full)
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    saver = CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda commit: None)
    saver.save(Part(folder), Progress(step=10), {}, None)
    saver._thread.join()
    calls = {
        "save": lambda: saver.save(Part(folder), Progress(step=20), {}, None),
        "check": saver.check,
        "flush": saver.flush,
    }
    with pytest.raises(TrainingError, match=r"no space left"):
        calls[ending]()
    assert store.latest() is None


def test_a_worker_whose_part_never_comes_is_named(tmp_path):
    store, _ = store_at(tmp_path / "run")
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    with (
        pytest.raises(TrainingError, match=r"workers \[1\] .* nodes share"),
        CheckpointSaver(store, Member("a1", 0, 2), keep=5, saved=lambda c: None, peers_timeout_s=0.0) as saver,
    ):
        saver.save(Part(folder), Progress(step=10, world_size=2), {}, None)


def test_leaving_by_an_error_keeps_the_error_and_what_was_in_flight(tmp_path):
    store, _ = store_at(tmp_path / "run")
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "state.json").write_text("{}")

    def failing_run():
        with CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda c: None) as saver:
            saver.save(Part(folder), Progress(step=10), {}, None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_run()
    assert store.latest().step == 10


def test_what_killed_processes_left_in_the_temporary_folder_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive = tmp_path / "rayloom-upload-99999999-x", tmp_path / f"rayloom-upload-{os.getpid()}-x"
    dead.mkdir()
    alive.mkdir()
    store, _ = store_at(tmp_path / "run")
    with CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda c: None):
        pass
    assert (dead.exists(), alive.exists()) == (False, True)


def test_storage_that_does_not_answer_is_an_error_and_not_an_empty_store(monkeypatch, tmp_path):
    store, _ = store_at(tmp_path / "run")
    save(store, tmp_path, 10)

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(store.storage._fs), "ls", refuse)
    with pytest.raises(TrainingError, match=r"cannot list .*no route to host"):
        store.latest()
