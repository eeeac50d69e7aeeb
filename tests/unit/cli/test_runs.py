from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rayloom.cli import runs
from rayloom.cli.runs import runs_app
from rayloom.errors import ConfigError
from rayloom.launch.runs import Run
from rayloom.launch.tracking.session import tracked
from tests.fakes_tracking import eval_record, run_config, step_record


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "console", Console(width=200, soft_wrap=True))


def output(*arguments: str) -> str:
    result = CliRunner().invoke(runs_app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return re.sub(r"[│┃|]", " ", result.output)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """One run that finished, and one whose driver was killed."""
    run = Run(str(tmp_path), "mill-qa")
    run.start(run_config())
    with tracked(run_config(), place=run.path, run_name=run.name, sink=print) as tracking:
        for event in (step_record(20), eval_record(20), step_record(40)):
            tracking(event)
        tracking.published("/artifacts/mill-qa", {})
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "config.yaml").write_text("")
    (killed / "status.json").write_text(
        '{"state": "running", "host": "elsewhere", "updated": 1.0, "step": 7, "total_steps": 9}'
    )
    return str(tmp_path)


def test_a_list_has_state_step_loss_and_best(storage: str) -> None:
    text = output("list", "--storage", storage)
    assert re.search(r"mill-qa +finished +40/40 +2\.00 +3\.0000 +loss 2\.0000 at step 20 ", text)
    assert re.search(r"killed +interrupted +7/9 ", text)
    assert text.index("mill-qa") < text.index("killed")  # the latest first


def test_one_run_shows_its_evaluations_and_where_things_are(storage: str) -> None:
    text = output("show", "mill-qa", "--storage", storage)
    assert re.search(r"1 +20 +2\.0000 +0\.2500", text)
    assert f"{storage}/mill-qa/report.html" in text
    assert "/artifacts/mill-qa" in text
    assert "interrupted" in output("show", "killed", "--storage", storage)


def test_an_unknown_run_and_an_empty_place_are_told(storage: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run 'mil'.*killed, mill-qa"):
        output("show", "mil", "--storage", storage)
    (tmp_path / "empty").mkdir()
    assert "no runs in" in output("list", "--storage", str(tmp_path / "empty"))


def test_a_list_needs_neither_torch_nor_ray(storage: str) -> None:
    code = (
        "import sys; from rayloom.cli.runs import list_; "
        f"list_({storage!r}); sys.exit(bool({{'torch', 'ray', 'transformers'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
