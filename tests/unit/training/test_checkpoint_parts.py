"""What a checkpoint holds is the state at its step, whenever its files are written and however they reach the store."""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import pytest
import torch

from rayloom.errors import TrainingError
from rayloom.training import Job, Part, PlainBackend, Progress, TokenLoss, copies, train
from rayloom.training.saver import CheckpointSaver, Member
from rayloom.training.storage import Storage
from tests.fakes import FAMILIES, KeptReports, random_examples, run_config, tiny_model
from tests.fakes_store import store_at


class LateReports(KeptReports):
    """Keeps parts and writes the rest of them only when training has ended."""

    def checkpoint(self, part, progress, metrics):
        super().checkpoint(Part(part.folder), progress, metrics)
        self.parts = [*getattr(self, "parts", []), (progress.step, part)]

    def finish(self):
        for step, part in self.parts:
            part.finish(self.checkpoints[step])


def files_of(family: str, reports: KeptReports) -> dict[str, str]:
    """Hashes of all files of all checkpoints of a run of six steps; dropout makes random states matter."""
    rows = random_examples(24, seq2seq=family == "t5", seed=1)
    training = {"batch_size": 8, "num_epochs": 2, "checkpoint_every_steps": 1, "learning_rate": 1e-2}
    config = run_config(training=training)
    module = TokenLoss(tiny_model(family, dropout=0.1), seq2seq=family == "t5")
    torch.manual_seed(3)
    train(Job(config, rows, rows, 0), PlainBackend(module, config, torch.device("cpu")), reports)
    if isinstance(reports, LateReports):
        reports.finish()
    # Seconds of training differ from run to run.
    found = [path for path in sorted(reports.folder.rglob("*")) if path.is_file() and path.name != "state.json"]
    return {str(path.relative_to(reports.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_written_late_holds_the_state_at_its_step(tmp_path, monkeypatch, family):
    late = files_of(family, LateReports(tmp_path / "late"))
    assert len(late) == 6 * 3  # weights, optimizer, random states
    assert late == files_of(family, KeptReports(tmp_path / "soon"))
    monkeypatch.setattr(copies, "_SMALL_BYTES", 0)
    at_once = LateReports(tmp_path / "at_once")
    assert late == files_of(family, at_once)
    assert all(part.later == () for _, part in at_once.parts), "a second copy of a large state is not kept in memory"


def made(folder: Path) -> Path:
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    return folder


def test_training_does_not_wait_for_what_is_written_later(tmp_path):
    gate = threading.Event()

    def write(place):
        assert gate.wait(20), "training has gone on by then"
        (place / "plain.pt").write_bytes(b"moments")

    store, _ = store_at(tmp_path / "run")
    with CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda commit: None) as saver:
        part = Part(made(tmp_path / "part"), (write,))
        saver.save(part, Progress(step=10), {}, None)
        assert store.latest() is None
        gate.set()
    commit = store.latest()
    assert sorted(commit.files) == ["plain.pt", "state.json"]
    with store.opened(commit) as folder:
        assert (folder / "plain.pt").read_bytes() == b"moments"


def test_what_cannot_be_written_later_ends_the_run_with_its_reason(tmp_path):
    def full(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    store, _ = store_at(tmp_path / "run")
    saver = CheckpointSaver(store, Member("a1", 0, 1), keep=5, saved=lambda commit: None)
    saver.save(Part(made(tmp_path / "part"), (full,)), Progress(step=10), {}, None)
    with pytest.raises(TrainingError, match=r"step 10 could not be saved: .*No space left"):
        saver.flush()
    assert store.latest() is None


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_file_is_moved_where_it_can_be(tmp_path, monkeypatch, other_disk):
    source = tmp_path / "plain.pt"
    source.write_bytes(b"moments" * 1000)
    inode = source.stat().st_ino
    if other_disk:

        def refuse(path, target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(Path, "replace", refuse)
    storage = Storage(str(tmp_path / "run"))
    entry = storage.take(source, "step-1/deepspeed/plain.pt")
    path = tmp_path / "run" / "step-1" / "deepspeed" / "plain.pt"
    assert path.read_bytes() == b"moments" * 1000
    assert storage.entry("step-1/deepspeed/plain.pt") == entry
    assert (path.stat().st_ino == inode) != other_disk


def test_copies_keep_their_memory_and_follow_other_shapes():
    held = copies.Copies()
    few, more = [torch.ones(3)], [torch.ones(3), torch.full((2, 2), 7, dtype=torch.bfloat16)]
    first = held.take(few)
    second = held.take(few)
    few[0].zero_()
    assert torch.equal(first[0], torch.ones(3))
    assert first[0].data_ptr() != second[0].data_ptr(), "nobody has given the first ones back"
    held.give_back(first)
    assert held.take(few)[0].data_ptr() == first[0].data_ptr()
    held.give_back(second)
    assert all(torch.equal(one, other) for one, other in zip(held.take(more), more, strict=True))
