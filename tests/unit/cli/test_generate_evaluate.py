from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayloom.cli.evaluate import evaluate
from rayloom.cli.generate import generate
from rayloom.errors import ArtifactError, ConfigError, RequestError
from rayloom.generation import TextGenerator
from tests.unit.generation.artifacts import make_artifact

app = typer.Typer()
app.command()(generate)
app.command()(evaluate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp("t5"), "t5", max_new_tokens=6)


def run(*arguments: str, text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_prompts_come_from_arguments_file_or_standard_input(folder: Path, tmp_path: Path) -> None:
    expected = TextGenerator(folder).generate_batch(["River 4?", "River 5?"])
    assert run("generate", str(folder), "River 4?", "River 5?").splitlines() == expected
    (tmp_path / "prompts.txt").write_text("River 4?\n\nRiver 5?\n")
    assert run("generate", str(folder), "--file", str(tmp_path / "prompts.txt")).splitlines() == expected
    assert run("generate", str(folder), text="River 4?\n").splitlines() == expected[:1]
    assert run("generate", str(folder), "River 4?", "--stream").splitlines() == expected[:1]


def test_parameters_reach_the_model(folder: Path) -> None:
    generator = TextGenerator(folder)
    expected = generator.generate("River 4?", context="Far.", num_beams=3, max_new_tokens=4, stop_strings=["zz"])
    options = ["-p", "num_beams=3", "-p", "stop-strings=[zz]", "--max-new-tokens", "4", "--context", "Far."]
    assert run("generate", str(folder), "River 4?", *options).strip("\n") == expected
    sampled = generator.generate("River 4?", do_sample=True, temperature=1.5, seed=4)
    assert run("generate", str(folder), "River 4?", "--temperature", "1.5", "--seed", "4").strip("\n") == sampled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["River", "-p", "max_new_token=3"], "did you mean 'max_new_tokens'"),
        (["River", "-p", "num_beams"], "NAME=VALUE"),
        (["River", "-p", "num_beams=2", "--num-beams", "3"], "given twice"),
        (["River", "--file", "x"], "not both"),
        (["--file", "/nonexistent/x"], "cannot be read"),
        ([], "standard input is empty"),
        (["River", "-p", "regex=("], "regex"),
        (["River", "--stream", "-p", "num_beams=2"], "cannot be streamed"),
    ],
    ids=str,
)
def test_wrong_use_of_generate_is_refused(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run("generate", str(folder), *arguments, text="")


def test_an_artifact_is_evaluated_and_the_report_named(folder: Path, tmp_path: Path) -> None:
    output = run(
        "evaluate",
        str(folder),
        "--split",
        "test",
        "--max-rows",
        "2",
        "-o",
        str(tmp_path / "out"),
        "--baseline",
        "--set",
        "evaluation.latency_prompts=2",
        "--set",
        "generation.prefix=Into",
    )
    assert "ROUGE-L" in output
    assert "before" in output
    assert str(tmp_path / "out" / "report.html") in output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_a_job_file_is_evaluated(folder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"artifact: {folder}\nsplits: [validation]\noutput: {tmp_path / 'out'}\n"
        "evaluation: {max_rows: 2, latency_prompts: 0}\n"
    )
    assert "validation, 2 rows" in run("evaluate", str(job))
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        run("evaluate", str(job), "--set", "evaluation.batchsize=2")
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: t5-small}\ndataset: {train_file: rows.json}\n")
    with pytest.raises(ConfigError, match="training run"):
        run("evaluate", str(config))


def test_wrong_use_of_evaluate_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--split 'tset'"):
        run("evaluate", str(folder), "--split", "tset")
    with pytest.raises(ArtifactError, match="no such folder"):
        run("evaluate", str(tmp_path / "absent"))
    with pytest.raises(ArtifactError, match="plain model"):
        run("evaluate", str(folder / "model"))
