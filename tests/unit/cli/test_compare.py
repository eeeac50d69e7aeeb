from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayloom.cli.compare import compare
from rayloom.errors import ArtifactError, ConfigError, RequestError
from tests.unit.generation.artifacts import make_artifact

app = typer.Typer()
app.command()(compare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp("t5"), "t5", max_new_tokens=6)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], RequestError, "needs two systems that differ"),
        (["-p", "num_beams"], RequestError, "expected NAME=VALUE"),
        (["-p", "num_beams=[2"], RequestError, "expected NAME=VALUE"),
        (["-p", "num_beams=2", "--split", "tset"], RequestError, "--split 'tset'"),
        (["-p", "num_beams=2", "--set", "batchsize=2"], ConfigError, "did you mean 'batch_size'"),
    ],
    ids=str,
)
def test_wrong_use_is_refused(folder: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(str(folder), *arguments)


def test_what_is_no_artifact_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        run(str(tmp_path / "absent"), str(tmp_path))


@pytest.mark.slow
def test_settings_of_one_artifact_are_compared(folder: Path, tmp_path: Path) -> None:
    options = ["--set", "latency_prompts=1", "--set", "throughput_batch_sizes=[1]", "--device", "cpu"]
    output = run(str(folder), "-p", "num_beams=2,length_penalty=0.5", *options, "-o", str(tmp_path / "out"))
    assert "has the best ROUGE-L" in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.csv",
        "compare.html",
        "compare.json",
        "compare.md",
    ]
    figures = json.loads(run(str(folder), "-p", "num_beams=3", *options, "-o", str(tmp_path / "out"), "--json"))
    assert figures["systems"][1]["parameters"] == {"num_beams": 3}
