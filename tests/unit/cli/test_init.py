"""`rayloom init` writes projects whose config loads and whose rows have the columns that it names."""

from __future__ import annotations

import json
import shlex
import typing
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from rayloom.cli.init import init, write_project
from rayloom.config import EvaluateJob, ServingConfig, TaskType, load_job, load_run_config, validate
from rayloom.errors import ConfigError

TASKS = typing.get_args(TaskType)
ROWS = {"train": 200, "validation": 40, "test": 40}
app = typer.Typer()
app.command()(init)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(path: str | None) -> list[dict[str, typing.Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_a_config_that_loads_and_data_that_fits(task: TaskType, tmp_path: Path) -> None:
    folder = tmp_path / "my-project"
    output = run(str(folder), "--task", task)
    assert "config.yaml" in output
    config = load_run_config(folder / "config.yaml")
    assert config.model.task_type == task
    dataset = config.dataset
    for split, number in ROWS.items():
        path = getattr(dataset, f"{split}_file")
        assert Path(path).parent == folder / "data"
        if task == "language-modeling":
            assert len(Path(path).read_text(encoding="utf-8")) > 5000
            continue
        rows = rows_of(path)
        assert len(rows) == (number if task != "translation" else {"train": 48}.get(split, 8))
        if task == "chat":
            roles = [[message["role"] for message in row[dataset.messages_column]] for row in rows]
            assert all(turns == ["user", "assistant"] * (len(turns) // 2) for turns in roles)
        else:
            columns = filter(None, (dataset.input_column, dataset.target_column, dataset.context_column))
            assert all(isinstance(row[column], str) and row[column] for column in columns for row in rows)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "language-modeling"])
def test_no_input_of_the_train_rows_is_in_another_split(task: TaskType, tmp_path: Path) -> None:
    write_project(tmp_path / "p", model="llama", task=task)
    seen: dict[str, str] = {}
    for split in ROWS:
        for row in rows_of(str(tmp_path / "p/data" / f"{split}.jsonl")):
            answerless = {name: cell for name, cell in row.items() if name not in ("answer", "output", "summary")}
            assert seen.setdefault(json.dumps(answerless), split) == split


@pytest.mark.parametrize("task", TASKS)
def test_the_readme_and_licence_fit_the_task(task: TaskType, tmp_path: Path) -> None:
    written = write_project(tmp_path / "p", model="HuggingFaceTB/SmolLM2-135M-Instruct", task=task)
    on_disk = {path.relative_to(tmp_path / "p") for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert set(written) == on_disk
    readme = (tmp_path / "p/README.md").read_text(encoding="utf-8")
    assert "$" not in readme
    assert "# p\n" in readme
    from_wordnet = task not in ("translation", "language-modeling")
    assert (tmp_path / "p/data/LICENSE.wordnet").exists() == from_wordnet
    block = readme.split("curl ", 1)[1].split("```", 1)[0].replace("\\\n", " ")
    body = json.loads(shlex.split(block)[-1])
    assert set(body) == ({"question", "context"} if task == "question-answering" else {"prompt"})


def test_job_and_serve_config_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("p", "--model", "gpt2")
    job = load_job(tmp_path / "p/jobs/evaluate.yaml")
    assert isinstance(job, EvaluateJob)
    config = load_run_config(tmp_path / "p/config.yaml")
    assert job.artifact == config.output.artifact_path
    (application,) = yaml.safe_load((tmp_path / "p/serve.yaml").read_text())["applications"]
    assert (application["name"], application["import_path"]) == ("p", "rayloom.serving.app:build")
    serving = validate(ServingConfig, application["args"])
    assert serving.artifact == str(tmp_path / "p/artifact")


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        ("t5-small", False),
        ("google/flan-t5-base", False),
        ("EleutherAI/gpt-neo-125m", False),
        ("llama-7b", True),
    ],
)
def test_large_families_get_lora(model: str, lora: bool, tmp_path: Path) -> None:
    write_project(tmp_path / "p", model=model, task="instruction")
    config = load_run_config(tmp_path / "p/config.yaml")
    assert config.model.name == model
    assert (config.lora is not None) == lora


@pytest.mark.parametrize("model", ["yes", "12", "./my models/a: b", "#x"])
def test_any_model_name_survives_yaml(model: str, tmp_path: Path) -> None:
    write_project(tmp_path / "p", model=model, task="instruction")
    assert load_run_config(tmp_path / "p/config.yaml").model.name == model


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ("t5-small", "chat", "needs a causal model"),
        ("google/flan-t5-xl", "language-modeling", "needs a causal model such as gpt2"),
        ("gpt2-medium", "chat", "no chat template"),
    ],
)
def test_a_model_that_cannot_do_the_task_is_refused(model: str, task: TaskType, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_project(tmp_path / "p", model=model, task=task)
    assert not (tmp_path / "p").exists()


def test_a_folder_in_use_is_left_alone_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("old")
    with pytest.raises(ConfigError, match="not empty"):
        write_project(tmp_path, model="t5-small", task="summarization")
    assert (tmp_path / "config.yaml").read_text() == "old"
    run(str(tmp_path), "--task", "summarization", "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_run_config(tmp_path / "config.yaml").model.task_type == "summarization"


@pytest.mark.parametrize("name", ["a b", "-x", "ü"])
def test_names_that_make_trouble_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a project"):
        write_project(tmp_path / name, model="t5-small", task="summarization")


def test_an_unknown_task_lists_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "p"), "--task", "qa"])
    assert result.exit_code == 2
    assert "question-answering" in result.output
