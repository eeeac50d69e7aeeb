"""An experiment as its users run it: the command line, real evaluations, and (slow) real training and a kill."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rayloom.cli.app import main
from rayloom.evaluation.comparing import measure
from rayloom.launch.experiments import running
from tests.unit.generation.artifacts import make_artifact

ROWS = [{"question": f"Where does river number {n} flow?", "answer": f"Into sea {n % 3}."} for n in range(60)]
RUN = {
    "model": {
        "name": "tiny",
        "random_init": {"family": "llama", "hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 400},
    },
    "dataset": {"train_file": "rows.json", "max_input_length": 48, "max_target_length": 12},
    "training": {"num_epochs": 1, "eval_rows": 0, "logging_steps": 1},
    "generation": {"max_new_tokens": 6},
    "evaluation": {"latency_prompts": 2, "throughput_batch_sizes": [2], "num_resamples": 100},
}
EXPERIMENT = {
    "title": "Rates and beams",
    "systems": {"tiny": {"config": "run.yaml"}},
    "vary": {"training.learning_rate": [1e-4, 1e-2], "generation.num_beams": [1, 2]},
    "columns": ["rougeL", "perplexity", "train_s", "train_peak_bytes", "latency_p95_s", "tokens_per_s", "peak_bytes"],
    "plot": {"x": "training.learning_rate", "y": "perplexity", "lines": "generation.num_beams"},
    "output": "docs",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(folder: Path) -> dict[str, int]:
    found = (folder / "runs" / "experiments" / "beams" / "cells").glob("*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def page(folder: Path) -> str:
    path = folder / "docs" / "beams.md"
    return path.read_text() if path.exists() else ""


def test_the_command_plans_measures_writes_and_does_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Here, not in a process for each cell: that is what takes long, and other tests have it.
    monkeypatch.setattr(running, "Workbench", functools.partial(running.Workbench, measure=measure))
    experiment = {
        "title": "Beams",
        "systems": {"tiny": {"artifact": str(make_artifact(folder, "t5", max_new_tokens=6))}},
        "changes": {"evaluation.latency_prompts": 0, "evaluation.num_resamples": 20},
        "vary": {"generation.num_beams": [1, 2]},
        "columns": ["rougeL", "answer_s"],
        "output": "docs",
    }
    (folder / "beams.yaml").write_text(yaml.safe_dump(experiment))

    def rayloom(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rayloom", "experiments", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return " ".join(said.out.split())

    said = rayloom("run", "beams.yaml")
    assert "Beams: 2 cells, 0 of them done; 0 training runs" in said
    assert said.index("1 of 2: tiny, num beams 1") < said.index("2 of 2: tiny, num beams 2") < said.index("ROUGE-L")
    assert len(re.findall(r"^\| [12] \| [\d.]+ %", page(folder), re.MULTILINE)) == 2
    before = cells(folder)
    assert len(before) == 2
    said = rayloom("run", "beams.yaml")
    assert "2 cells, 2 of them done" in said
    assert "of 2: tiny" not in said
    assert cells(folder) == before
    sorted((folder / "runs" / "experiments" / "beams" / "cells").iterdir())[0].unlink()
    assert "1 of 1: tiny" in rayloom("run", "beams.yaml")
    after = cells(folder)
    assert sum(after[name] == before[name] for name in before) == 1
    assert "2 cells, 2 of them done" in rayloom("show", "beams.yaml")


def started(folder: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rayloom", "experiments", "run", "beams.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_experiment_goes_on_where_it_was(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN, sort_keys=False))
    (folder / "beams.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    process = started(folder)
    deadline = time.monotonic() + 240
    while "3 of 4 cells are not measured yet" not in page(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = cells(folder)
    assert len(before) >= 1

    process = started(folder)
    output, _ = process.communicate(timeout=540)
    assert process.returncode == 0, output
    after = cells(folder)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    trained = list((folder / "runs" / "experiments" / "beams" / "trained").glob("*.json"))
    assert len(trained) == 2
    text = page(folder)
    assert "not measured yet" not in text
    assert len(re.findall(r"^\| (?:0.0001|0.01) \| [12] \| [\d.]+ %", text, re.MULTILINE)) == 4
    assert re.search(r"\d+ / \d+ / \d+ rows", text)
    assert (folder / "docs" / "beams.svg").read_text().startswith("<svg")
    assert "has the best ROUGE-L" in output
