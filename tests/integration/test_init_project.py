"""A fresh project trains without a hand laid on it; without a hub it says what it needs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayloom.artifacts import open_artifact
from rayloom.cli.app import main
from rayloom.config import ModelConfig, RandomInit
from rayloom.models import resolve_source
from tests.integration.conftest import TEXTS

QUICK = ["dataset.max_train_rows=16", "training.num_epochs=1", "training.eval_rows=4"]


def test_without_a_hub_a_fresh_project_says_what_it_needs(tmp_path: Path) -> None:
    rayloom = f"{shlex.quote(sys.executable)} -m rayloom"
    line = f"{rayloom} init qa --model t5-small --task question-answering && cd qa && {rayloom} train config.yaml"
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
        "RAYLOOM_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        line,
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (said,) = done.stderr.splitlines()
    for part in ("'t5-small'", "http://127.0.0.1:9 cannot be reached", "HF_HOME", "local folder"):
        assert part in said
    assert not (tmp_path / "qa" / "runs").exists()


@pytest.fixture
def tiny_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder as a user has one: config, tokenizer and safetensors."""
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    init = RandomInit(family="t5", hidden_size=32, num_layers=1, vocab_size=400)
    source = resolve_source(ModelConfig(name="tiny", random_init=init), lambda: TEXTS, seed=0)
    return Path(shutil.copytree(source.location, tmp_path / "models" / "tiny-t5"))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_fresh_project_trains_reports_and_answers(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def rayloom(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rayloom", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return said.out

    rayloom("init", "qa", "--model", str(tiny_t5), "--task", "question-answering")
    monkeypatch.chdir(tmp_path / "qa")

    changes = [word for change in [*QUICK, "output.run_name=first"] for word in ("--set", change)]
    said = rayloom("train", "config.yaml", *changes)
    artifact = Path(said.rpartition("artifact: ")[2].splitlines()[0])
    manifest = open_artifact(artifact).manifest
    assert manifest.family == "t5"
    assert manifest.golden
    assert manifest.metrics["loss"] > 0.0
    assert "16 train, 40 validation, 40 test" in said

    said = rayloom("evaluate", str(artifact), "--max-rows", "4", "--baseline", "--set", "evaluation.latency_prompts=1")
    assert "before" in said
    (report,) = Path("reports").rglob("report.json")
    metrics = json.loads(report.read_text(encoding="utf-8"))
    assert report.with_name("report.html").is_file()
    assert "test" in json.dumps(metrics)

    answer = rayloom("generate", str(artifact), "Who built the mill?", "--max-new-tokens", "4", "--num-beams", "1")
    again = rayloom("generate", str(artifact), "Who built the mill?", "--max-new-tokens", "4", "--num-beams", "1")
    assert answer.endswith("\n")
    assert answer == again
