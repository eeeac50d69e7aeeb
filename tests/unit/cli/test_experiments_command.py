from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from rayloom.cli.experiments import experiments_app
from rayloom.errors import ConfigError

app = typer.Typer()
app.add_typer(experiments_app, name="experiments")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps([{"question": f"Why {n}?", "answer": "So."} for n in range(9)]))
    init = {"family": "llama", "hidden_size": 32, "vocab_size": 400}
    run = {"model": {"name": "tiny", "random_init": init}, "dataset": {"train_file": "rows.json"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    experiment = {
        "title": "Rates",
        "systems": {"tiny": {"config": "run.yaml"}},
        "vary": {"training.learning_rate": [0.25, 0.5]},
        "columns": ["rougeL", "train_s"],
        "storage_path": str(tmp_path / "runs"),
    }
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return tmp_path / "rates.yaml"


def test_show_tells_what_is_to_be_done_and_runs_nothing(path: Path) -> None:
    result = CliRunner().invoke(app, ["experiments", "show", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 cells, 0 of them done; 2 training runs, 0 of them done" in result.output
    assert "not measured yet" in result.output
    assert not (path.parent / "runs").exists()


def test_a_wrong_key_is_told(path: Path) -> None:
    with pytest.raises(ConfigError, match="--set, mesure: .*did you mean 'measure'"):
        CliRunner().invoke(app, ["experiments", "run", str(path), "--set", "mesure=none"], catch_exceptions=False)


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import rayloom.cli.experiments; sys.exit(bool({'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
