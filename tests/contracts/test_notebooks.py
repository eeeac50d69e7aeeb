"""The notebooks run from their first cell to their last, and are kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from rayloom.config import EvaluateJob, EvaluationConfig
from rayloom.evaluation import run_job
from tests.unit.generation.artifacts import make_artifact

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs").rglob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run leaves behind, and its report."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    run = tmp_path / "runs" / "rivers"
    run.mkdir(parents=True)
    artifact = make_artifact(run, "t5", max_new_tokens=6)
    (run / "config.yaml").write_text((artifact / "config.yaml").read_text())
    steps = [{"kind": "step", "step": step, "loss": 5.0 / step, "tokens_per_s": 100.0} for step in (1, 2, 3)]
    records = [*steps, {"kind": "evaluation", "step": 3, "epoch": 1.0, "metrics": {"loss": 1.5}}]
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = EvaluationConfig(latency_prompts=0, num_resamples=50)
    report = tmp_path / "reports" / "rivers"
    run_job(EvaluateJob(artifact=str(artifact), splits=["test"], evaluation=options, output=str(report)), device="cpu")
    monkeypatch.setenv("RAYLOOM_RUN", str(run))
    monkeypatch.setenv("RAYLOOM_REPORT", str(report))
    return run


def executed(path: Path) -> dict[str, Any]:
    """What the cells leave in their namespace; `shown_N` is the value that cell N would show."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(path, "code")):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), names)
        if last is not None:
            assert isinstance(last, ast.Expr)
            names[f"shown_{number}"] = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path, "code"))


def test_the_run_notebook_shows_a_run(run: Path) -> None:
    (path,) = [path for path in NOTEBOOKS if path.name == "run_analysis.ipynb"]
    names = executed(path)
    assert names["RUN"] == run
    assert names["steps"]["loss"].to_list() == [5.0, 2.5, 5.0 / 3]
    assert names["validation"]["loss"].to_list() == [1.5]
    assert names["metrics"].loc["rougeL", "value"] == pytest.approx(names["rows"]["rougeL"].astype(float).mean())
    assert len(names["worst"]) >= 1
    assert set(names["shown_6"].columns) <= {"rows", "ROUGE-L", "low", "high"}
