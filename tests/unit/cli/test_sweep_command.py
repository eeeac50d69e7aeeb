"""`rayloom sweep FILE` is a command beside `rayloom sweep show`; its plan and tables fit a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rayloom.cli import sweep as command
from rayloom.cli.sweep import sweep_app
from rayloom.config import Sweep, SweepConfig, validate
from rayloom.config.run import RunConfig
from rayloom.errors import ConfigError
from rayloom.launch.session import Cluster
from rayloom.launch.sweeping.asked import keep_asked
from rayloom.launch.sweeping.plan import Need, Plan
from rayloom.launch.sweeping.state import Report, SweepState
from rayloom.launch.sweeping.terminal import live_table, plan_lines
from rayloom.launch.tracking.folder import RunFolder


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "console", Console(width=160, soft_wrap=True))


def invoke(*arguments: str):
    return CliRunner().invoke(sweep_app, list(arguments))


def sweep(**keys: object) -> Sweep:
    asked = {"config": "b.yaml", "space": {"lora.r": {"choice": [4, 8]}}, "num_trials": 2} | keys
    base = {"model": {"name": "t5-small"}, "dataset": {"train_file": "/data/train.jsonl"}}
    return Sweep(validate(SweepConfig, asked), validate(RunConfig, base), "s")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    place = RunFolder(str(tmp_path / "s"))
    keep_asked(sweep(), place)
    state = SweepState(place)
    first = state.begun(0, {"lora.r": 4})
    first.add(Report("trial-000", 12, 1, {"loss": 2.25}))
    first.end, first.score, first.artifact = "finished", 2.25, "/artifacts/0"
    state.begun(1, {"lora.r": 8})
    state.save()
    return place


def test_a_file_alone_is_run(tmp_path):
    for arguments in (["run", "missing.yaml"], ["missing.yaml"], ["--set", "seed=1", "missing.yaml"]):
        result = invoke(*arguments)
        assert isinstance(result.exception, ConfigError)
        assert "missing.yaml: no such file" in str(result.exception)


def test_help_names_the_commands():
    text = invoke("--help").output
    assert all(name in text for name in ("show", "promote", "run", "jobs/sweep/FILE.yaml"))


def test_a_sweep_is_shown_while_it_runs(folder):
    text = re.sub(r"\s+", " ", invoke("show", folder.path).output)
    assert "trial-000" in text
    assert "trial-000 won: loss 2.2500 with r 4." in text
    assert "trial-001" not in text, "it has not ended"
    shown = json.loads(invoke("show", folder.path, "--json").output)
    assert (shown["best"], shown["trials"][0]["score"]) == ("trial-000", 2.25)


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    assert "no folder of a sweep" in str(invoke("show", str(tmp_path)).exception)


def test_the_plan_says_what_it_will_take():
    need = Need(cpus=2.0, gpus=0, steps=40, steps_per_epoch=10, seconds=60.0, disk_bytes=3 << 20)
    plan = Plan(num_trials=10, num_ended=2, concurrent=2, need=need, share=0.5)
    asked = sweep(scheduler={"asha": {"grace": 10, "reduction": 2}})
    lines = plan_lines(asked, plan, Cluster(None, 4.0, 0.0), "/sweeps/s")
    assert lines["trials"] == "10 by random, asha, 2 more have ended already"
    assert lines["at once"] == "2, each with 2 CPUs"
    assert lines["steps"] == "40 a trial, 400 at most, about 200 if one in 2 passes each rung"
    assert lines["disk"] == "30.0 MiB at most for checkpoints and artifacts"
    assert lines["time"].startswith("roughly")


def test_the_live_table_has_all_trials(folder):
    console = Console(width=80, record=True)
    console.print(live_table(sweep(), SweepState(folder), {1}))
    text = console.export_text()
    assert "finished" in text
    assert "running" in text
    assert "starting" in text
