"""What a worker tells, and what decides that a checkpoint is of the same run."""

from __future__ import annotations

import asyncio

import pytest

from rayloom.errors import TrainingError
from rayloom.launch import Run, reporting
from rayloom.launch.board import Board
from rayloom.launch.progress import Note
from rayloom.launch.reporting import WorkerReporter, score_of
from rayloom.training import CheckpointSaver, EvalRecord, Member, Part, Progress, StepRecord, Storage
from tests.fakes import run_config
from tests.fakes_store import store_at

STEP = StepRecord(1, 2, 0.5, 1.0, 1e-3, 1.0, 10.0, 1.0)


@pytest.fixture
def posted(monkeypatch):
    events = []
    monkeypatch.setattr(reporting, "post", lambda board, event: events.append(event))
    return events


class AwaitedBoard:
    """Stands for the handle of a board: what was safe when it was asked to settle."""

    def __init__(self, store):
        self.settled = self
        self.store, self.safe = store, []

    def remote(self):
        latest = self.store.latest()
        self.safe.append(latest and latest.step)


def make(tmp_path, rank=0, board=None, **training):
    store, _ = store_at(tmp_path / "run" / "checkpoints")
    saver = CheckpointSaver(store, Member("a1", rank, 1), keep=3, saved=lambda commit: None)
    config = run_config(training=training)
    if board is not None:
        board = board(store)
    reporter = WorkerReporter(
        config, board, place=str(tmp_path / "run"), saver=saver, is_first=rank == 0, waits=board is not None
    )
    return reporter, saver, store


def part(tmp_path):
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    return Part(folder)


def test_only_the_first_worker_posts(tmp_path, posted):
    for rank in (0, 1):
        reporter, _, _ = make(tmp_path, rank)
        reporter.note("x")
        reporter.stepped(STEP)
        reporter.evaluated(EvalRecord(1, 1, {"loss": 1.0}))
    assert posted == [Note("x"), STEP, EvalRecord(1, 1, {"loss": 1.0})]


def test_a_checkpoint_carries_its_score(tmp_path, posted):
    reporter, saver, store = make(tmp_path, metric_for_best="rougeL")
    reporter.checkpoint(part(tmp_path), Progress(step=5), {"loss": 2.0, "rougeL": 0.25})
    saver.flush()
    commit = store.latest()
    assert (commit.step, commit.score, commit.metrics) == (5, 0.25, {"loss": 2.0, "rougeL": 0.25})


def test_the_driver_is_waited_for_when_a_validation_is_safe(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting.ray, "get", lambda answer: answer)
    reporter, saver, store = make(tmp_path, board=AwaitedBoard)
    board = reporter._board
    reporter.checkpoint(part(tmp_path), Progress(step=5), {"loss": 2.0})
    assert board.safe == [5]
    (tmp_path / "part" / "state.json").write_text("{}")
    reporter.checkpoint(Part(tmp_path / "part"), Progress(step=6), {})
    saver.flush()
    assert board.safe == [5], "nobody decides on a checkpoint without figures"


async def soon(waiting):
    """Whether something that waits has ended after a turn of everything else."""
    for _ in range(5):
        await asyncio.sleep(0)
    return waiting.done()


def test_a_board_is_settled_when_its_reader_comes_again():
    async def play():
        board = Board.__ray_metadata__.modified_class()
        await board.settled()
        await board.post(b"1")
        first = asyncio.ensure_future(board.settled())
        assert not await soon(first)
        assert await board.take() == [b"1"]
        assert not await soon(first), "it was taken, but nobody knows that it was dealt with"
        await board.post(b"2")
        second = asyncio.ensure_future(board.settled())
        assert await board.take() == [b"2"]
        assert await soon(first)
        assert not await soon(second)
        assert await board.take() == []
        assert await soon(second)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("metric", "metrics", "score"),
    [("loss", {"loss": 2.0}, -2.0), ("rougeL", {"loss": 2.0, "rougeL": 0.3}, 0.3), ("loss", {}, None)],
)
def test_a_larger_score_is_better(metric, metrics, score):
    assert score_of(metrics, run_config(training={"metric_for_best": metric}).training) == score


def test_a_failed_upload_is_noticed_at_the_next_logged_step(tmp_path, posted, monkeypatch):
    def full(storage, source, name):
        raise TrainingError("no space left")

    monkeypatch.setattr(Storage, "take", full)
    reporter, saver, _ = make(tmp_path)
    reporter.checkpoint(part(tmp_path), Progress(step=5), {})
    saver._thread.join()
    with pytest.raises(TrainingError, match=r"no space left"):
        reporter.stepped(STEP)


def test_files_are_kept_in_the_runs_folder(tmp_path, posted):
    reporter, _, _ = make(tmp_path)
    (tmp_path / "trace.json").write_text("{}")
    reporter.keep_file(tmp_path / "trace.json")
    assert (tmp_path / "run" / "trace.json").read_text() == "{}"


def test_what_decides_the_weights_decides_the_identity(tmp_path):
    run = Run(str(tmp_path), "one")
    config = run_config()
    same = [
        run_config(distributed={"num_workers": 2, "zero_stage": 3}),
        run_config(output={"run_name": "other"}),
        run_config(training={"seed": 42}),  # the default, given
    ]
    others = [
        run_config(training={"seed": 7}),
        run_config(lora={"r": 4}),
        run_config(model={"name": "other", "task_type": "question-answering"}),
    ]
    identity = run.identity(config, "d1")
    assert all(run.identity(each, "d1") == identity for each in same)
    assert all(run.identity(each, "d1")["config"] != identity["config"] for each in others)
    assert run.identity(config, "d2") == identity | {"data": "d2"}
