"""Wrong input to the real command line: one clear error, exit code 2, and nothing on disk changes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from huggingface_hub import constants

from rayloom.cli.app import main
from rayloom.config import dump_yaml, load_run_config
from tests.integration.wrong_inputs import CONFIG, CONFIGS, DATA, ROWS, Case, lines
from tests.integration.wrong_places import ARTIFACTS, MODELS, RUNS, USAGE

CASES = [*CONFIGS, *DATA, *MODELS, *RUNS, *ARTIFACTS, *USAGE]


@pytest.fixture
def workplace(tmp_path: Path, tiny_artifact_t5: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good config, rows and artifacts. The hub's port is closed, and Ray may not start."""
    folder = tmp_path / "work"
    (folder / "runs" / "kept").mkdir(parents=True)
    (folder / "runs" / "kept" / "note.txt").write_text("kept")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "rows.jsonl").write_text(lines(ROWS))
    (tmp_path / "outside.yaml").write_text(CONFIG)
    for name in ("good", "damaged", "halved"):
        shutil.copytree(tiny_artifact_t5, folder / name)
    write_run(folder, "old")
    weights = folder / "damaged" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    (folder / "halved" / "model" / "tokenizer.json").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(ray, "init", forbidden)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def write_run(folder: Path, name: str) -> None:
    """A run as `rayloom train` leaves it when it is interrupted early."""
    config = load_run_config(folder / "config.yaml", [f"output.run_name={name}"])
    put(folder, {f"runs/{name}/config.yaml": dump_yaml(config)})


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("Ray was started")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
        if "cache" not in path.relative_to(folder).parts
    }


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def check_text(said: str, case: Case) -> None:
    assert "Traceback" not in said
    if case.usage:
        said = " ".join(said.split())
        assert said.startswith("Usage:")
        assert said.count("─ Error ─") == 1
    else:
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1, said
    assert [part for part in case.said if part not in said] == [], said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_gives_one_clear_error(
    case: Case,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(workplace, case.files)
    before = content(workplace.parent)
    monkeypatch.setattr(sys, "argv", ["rayloom", *shlex.split(case.command)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    check_text(capsys.readouterr().err, case)
    assert content(workplace.parent) == before


SEPARATE = [
    next(case for case in CASES if case.name == name)
    for name in ("misspelt key", "missing column", "init: unknown task")
]


@pytest.mark.parametrize("case", SEPARATE, ids=lambda case: case.name)
def test_the_installed_command_ends_the_same_way(case: Case, workplace: Path) -> None:
    put(workplace, case.files)
    before = content(workplace.parent)
    environment = {**os.environ, "COLUMNS": "120", "RAYLOOM_CACHE": str(workplace.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "rayloom", *shlex.split(case.command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    check_text(done.stderr, case)
    assert content(workplace.parent) == before
