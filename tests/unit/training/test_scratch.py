"""Temporary folders of killed processes are removed; those of living ones are not."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from rayloom.training.scratch import make_scratch, scratch, sweep_scratch


def test_what_a_killed_process_left_is_swept(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / f"rayloom-checkpoint-{int(gone.stdout)}-abc_1"
    (left / "deepspeed").mkdir(parents=True)
    others = [tmp_path / name for name in ("rayloom-x1y2", "rayloom-tracking-zzzz", f"mine-a-{int(gone.stdout)}-b")]
    for folder in others:
        folder.mkdir()
    own = make_scratch("resume")
    sweep_scratch()
    assert not left.exists()
    assert own.is_dir()
    assert all(folder.is_dir() for folder in others)


def test_a_scratch_folder_goes_with_its_context(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch("trace") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
