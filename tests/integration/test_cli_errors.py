"""Wrong input to the real command line: one clear error, exit code 2, and nothing on disk changes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from huggingface_hub import constants
from rayloom.cli.app import main
from rayloom.config import dump_yaml, load_run_config

CONFIG = """\
model:
  name: tiny
  random_init: {family: t5, hidden_size: 32, num_layers: 1, vocab_size: 300}
dataset:
  train_file: rows.jsonl
training:
  num_epochs: 1
output:
  storage_path: runs
"""
HEAD, DATASET, TAIL = CONFIG.partition("dataset:\n  train_file: rows.jsonl\n")
ROWS = [{"question": f"Who is number {n}?", "answer": f"Number {n}."} for n in range(20)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Ho"}]}
    for n in range(20)
]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True)
class Case:
    """One wrong input. ``said``: what the one error must contain; ``files``: put into the working folder first."""

    name: str
    command: str
    said: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    usage: bool = False


def config_case(name: str, text: str | bytes, *said: str) -> Case:
    return Case(name, "train c.yaml", said, {"c.yaml": text})


def data_case(name: str, file: str, content: str | bytes, *said: str, sets: str = "") -> Case:
    return Case(
        name, f"train config.yaml -s dataset.train_file={file} {sets}", (file, *said), {file: content}
    )


def set_case(name: str, sets: str, *said: str, command: str = "train") -> Case:
    words = " ".join(f"-s {each}" for each in sets.split())
    return Case(name, f"{command} config.yaml {words}", said)


CONFIGS = [
    config_case(
        "unknown key",
        CONFIG + "  retries: 3\n",
        "c.yaml, line 10, output.retries",
        "known here: storage_path",
    ),
    config_case(
        "misspelt key",
        CONFIG.replace("num_epochs", "num_epoch"),
        "line 7, training.num_epoch",
        "'num_epochs'",
    ),
    config_case(
        "wrong section", CONFIG + "  batch_size: 4\n", "line 10, output.batch_size", "'training.batch_size'"
    ),
    config_case("unknown section", CONFIG + "trainig: {}\n", "line 10, trainig", "did you mean 'training'"),
    config_case("missing section", HEAD, "c.yaml, dataset", "required"),
    config_case("section without keys", HEAD + "dataset: rows.jsonl\n", "line 4, dataset", "keys of its own"),
    config_case(
        "fp16 and bf16",
        CONFIG.replace("num_epochs: 1", "fp16: true\n  bf16: true"),
        "c.yaml, line 7, training.fp16",
        "bf16",
    ),
    config_case(
        "two warm-ups",
        CONFIG.replace("num_epochs: 1", "warmup_steps: 3\n  warmup_ratio: 0.1"),
        "c.yaml, line 7, training.warmup_steps",
        "warmup_ratio",
    ),
    config_case(
        "duplicate key", CONFIG + "  storage_path: b\n", "c.yaml, line 10, output.storage_path", "twice"
    ),
    config_case("bad YAML", CONFIG + "  run_name: [a\n", "c.yaml, line 11", "not valid YAML"),
    config_case("tab for spaces", CONFIG + "\trun_name: a\n", "c.yaml, line 10", "not valid YAML"),
    config_case("endless number", CONFIG + f"  run_name: {'9' * 5000}\n", "c.yaml", "not valid YAML"),
    config_case("number as key", CONFIG + "7: 8\n", "c.yaml, line 10, 7", "quotes"),
    config_case("endless alias", CONFIG + "lora: &a {r: 4, target_modules: *a}\n", "c.yaml", "alias"),
    config_case("empty config", "", "c.yaml, line 1", "expected a mapping"),
    config_case("list for a mapping", "- model\n", "c.yaml, line 1", "expected a mapping"),
    config_case("config not UTF-8", CONFIG.replace("tiny", "tïny").encode("latin-1"), "c.yaml", "UTF-8"),
    config_case(
        "wrong type",
        CONFIG.replace("num_epochs: 1", "num_epochs: three"),
        "line 7, training.num_epochs",
        "'three'",
    ),
    config_case(
        "negative batch",
        CONFIG.replace("num_epochs: 1", "batch_size: -4"),
        "line 7, training.batch_size",
        "-4",
    ),
    config_case(
        "name and file",
        HEAD + DATASET + "  name: squad\n" + TAIL,
        "c.yaml, line 6, dataset.name",
        "train_file",
    ),
    config_case(
        "offload without a stage",
        CONFIG + "distributed:\n  offload_optimizer: true\n",
        "c.yaml, line 11, distributed.offload_optimizer",
        "zero_stage",
    ),
    config_case(
        "unknown task",
        CONFIG.replace("name: tiny", "name: tiny\n  task_type: poetry"),
        "line 3, model.task_type",
        "'poetry'",
    ),
    config_case(
        "heads do not divide",
        CONFIG.replace("hidden_size: 32", "hidden_size: 33"),
        "c.yaml, line 3, model.random_init.hidden_size",
        "multiple of num_heads",
    ),
    Case("no such config", "train absent.yaml", ("absent.yaml", "no such file")),
    Case("config is a folder", "train runs", ("runs", "folder")),
    Case("config show: no such config", "config show absent.yaml", ("absent.yaml", "no such file")),
    Case(
        "config show: unknown key",
        "config show config.yaml -s training.lr=1",
        ("training.lr", "learning_rate"),
    ),
    Case(
        "doctor: wrong type", "doctor config.yaml -s training.fp16=maybe", ("--set, training.fp16", "maybe")
    ),
    Case(
        "set without a value",
        "train config.yaml --set training.num_epochs",
        ("--set 'training.num_epochs'", "a.b=c"),
    ),
    Case("set is no YAML", "train config.yaml --set training.num_epochs=[", ("--set", "not valid YAML")),
    Case(
        "set below a value", "train config.yaml --set training.num_epochs.x=1", ("'num_epochs' is a value",)
    ),
]

DATA = [
    set_case("train file absent", "dataset.train_file=absent.jsonl", "absent.jsonl", "no such file"),
    set_case("train file is a folder", "dataset.train_file=runs", "runs", "folder"),
    data_case("empty file", "data.jsonl", "", "empty"),
    data_case("only blank lines", "data.csv", "\n \n", "empty"),
    data_case("only a header", "data.csv", "question,answer\n", "no rows"),
    data_case(
        "broken JSON line",
        "data.jsonl",
        lines(ROWS[:2]) + '{"question": "a"\n',
        "data.jsonl, row 3",
        "broken JSON",
    ),
    data_case("broken JSON", "data.json", '[{"question": "a"},\n]', "line 2", "broken JSON"),
    data_case("JSON of another shape", "data.json", '"text"', "list of objects"),
    data_case("line is no object", "data.jsonl", lines(ROWS) + "[1]\n", "row 21", "object"),
    data_case(
        "missing column",
        "data.jsonl",
        lines([{"frage": "a", "answer": "b"}]),
        "row 1, column 'question'",
        "'frage'",
        "dataset.*_column",
    ),
    data_case(
        "null cell",
        "data.jsonl",
        lines([*ROWS, {"question": "Who?", "answer": None}]),
        "row 21, column 'answer'",
        "null",
    ),
    data_case(
        "cell is a list",
        "data.jsonl",
        lines([{"question": "Who?", "answer": ["b"]}]),
        "column 'answer'",
        "answer.0",
    ),
    data_case(
        "data not UTF-8",
        "data.csv",
        "question,answer\nwho,Zoë\n".encode("latin-1"),
        "row 2, column 'answer'",
        "0xEB is not UTF-8",
    ),
    data_case(
        "data in UTF-16", "data.csv", "question,answer\n".encode("utf-16"), "UTF-16", "save it as UTF-8"
    ),
    data_case("ragged CSV", "data.csv", "question,answer\na,b\nc,d,e\n", "row 3", "3 cells", "header has 2"),
    data_case("same name twice", "data.csv", "answer,answer\na,b\n", "row 1, column 'answer'", "twice"),
    data_case("unknown suffix", "data.xlsx", "x", "'.xlsx'", "known are .json"),
    data_case("broken Parquet", "data.parquet", "PAR1 it is not", "Parquet"),
    data_case("too few rows", "data.jsonl", lines(ROWS[:2]), "cannot be split", "add rows"),
    data_case(
        "targets wholly empty",
        "data.jsonl",
        lines([row | {"answer": " "} for row in ROWS]),
        "train rows: no row can be used",
        "dataset.*_column",
    ),
    data_case(
        "inputs wholly empty",
        "data.jsonl",
        lines([{"question": " " * n, "answer": "b"} for n in range(20)]),
        "different inputs",
    ),
    set_case("named data is out of reach", "dataset={name: squad}".replace(" ", ""), "squad"),
    set_case(
        "template does not fit",
        "dataset.max_input_length=4",
        "max_input_length 4",
        "raise dataset.max_input_length",
    ),
]

MODELS = [
    set_case(
        "no such model folder", "model.name=./nowhere model.random_init=null", "'./nowhere'", "no such folder"
    ),
    set_case("folder without a model", "model.name=./runs model.random_init=null", "runs", "config.json"),
    Case(
        "pickle weights",
        "train config.yaml -s model.name=./pickled -s model.random_init=null",
        ("pickled", "pickle", "save_pretrained"),
        {"pickled/config.json": "{}", "pickled/pytorch_model.bin": "x"},
    ),
    Case(
        "no weights",
        "train config.yaml -s model.name=./bare -s model.random_init=null",
        ("bare", "no .safetensors weights"),
        {"bare/config.json": "{}"},
    ),
    Case(
        "broken model config",
        "train config.yaml -s model.name=./torn -s model.random_init=null",
        ("torn", "configuration cannot be read"),
        {"torn/config.json": "{", "torn/model.safetensors": "x"},
    ),
    set_case(
        "package is not installed",
        "model.name=package:llm_nothing/a.gguf model.random_init=null",
        "'llm_nothing' is not installed",
        "pip install llm_nothing",
    ),
    set_case(
        "package without the file",
        "model.name=package:yaml/a.gguf model.random_init=null",
        "no GGUF file 'a.gguf'",
    ),
    set_case(
        "hub out of reach",
        "model.name=t5-small model.random_init=null",
        "'t5-small'",
        "cannot be reached",
        "local folder",
    ),
    set_case("no hub name", "model.name=a--b?c model.random_init=null", "a--b?c"),
    set_case(
        "T5 continues no text",
        "model.task_type=language-modeling dataset.text_column=question",
        "model.task_type",
        "causal",
    ),
    Case(
        "no chat template",
        "train config.yaml -s model.task_type=chat -s model.random_init.family=llama -s dataset.train_file=chats.jsonl",
        ("no chat template", "Instruct"),
        {"chats.jsonl": lines(CHATS)},
    ),
    set_case(
        "generation type contradicts",
        "model.generation_type=causal",
        "generation_type 'causal' contradicts",
        "seq2seq",
    ),
    set_case("unknown architecture option", "model.random_init.options.d_modell=3", "'d_modell'", "d_model"),
    set_case(
        "no language",
        "model.task_type=translation dataset.input_column=question dataset.target_column=answer",
        "dataset.source_language",
    ),
    set_case(
        "doctor: no such LoRA target",
        "lora={target_modules:[query]}",
        "target_modules",
        "'query'",
        "it has: ",
        command="doctor",
    ),
    set_case("no such LoRA target", "lora={target_modules:[query]}", "target_modules", "'query'", "it has: "),
    set_case(
        "doctor: hub out of reach",
        "model.name=acme/unknown model.random_init=null",
        "acme/unknown",
        "cannot be reached",
        command="doctor",
    ),
]

RUNS = [
    Case("nothing to resume", "train config.yaml --resume gone", ("no run 'gone'", "runs")),
    Case("name of a run to resume is a number", "train config.yaml --resume 2026", ("no run '2026'",)),
    Case("run exists", "train config.yaml -s output.run_name=old", ("run 'old' exists", "--resume")),
    Case(
        "resume with another config",
        "train config.yaml --resume old -s training.num_epochs=9",
        ("'training' section", "num_epochs: 1 → 9"),
    ),
    Case(
        "resume of a damaged run",
        "train config.yaml --resume torn",
        ("runs/torn/config.yaml", "damaged"),
        {"runs/torn/config.yaml": "model: ["},
    ),
    set_case("storage is a file", "output.storage_path=rows.jsonl", "output.storage_path", "rows.jsonl"),
    set_case(
        "storage of an unknown kind", "output.storage_path=nope://bucket", "output.storage_path", "nope"
    ),
    set_case(
        "artifact goes below a file",
        "output.artifact_path=rows.jsonl/a",
        "output.artifact_path",
        "rows.jsonl",
    ),
    set_case("run name leads elsewhere", "output.run_name=../elsewhere", "output.run_name", "'../elsewhere'"),
]

ARTIFACTS = [
    Case("generate: no such artifact", "generate ./absent Why?", ("absent", "no such folder")),
    Case("generate: no artifact", "generate ./runs Why?", ("runs", "manifest.json", "rayloom train")),
    Case(
        "generate: damaged",
        "generate ./damaged Why?",
        ("damaged", "model/", "has changed", "publish it again"),
    ),
    Case("generate: file missing", "generate ./halved Why?", ("halved", "is missing", "publish it again")),
    Case(
        "generate: unknown parameter",
        "generate ./good Why? -p max_tokens=3",
        ("'max_tokens'", "did you mean 'max_new_tokens'"),
    ),
    Case("generate: value makes no sense", "generate ./good Why? -p num_beams=none", ("num_beams", "'none'")),
    Case(
        "generate: parameter without value",
        "generate ./good Why? -p num_beams",
        ("--param 'num_beams'", "NAME=VALUE"),
    ),
    Case(
        "generate: endless number",
        f"generate ./good Why? -p prefix={'9' * 5000}",
        ("--param", "not valid YAML"),
    ),
    Case("generate: no such device", "generate ./good Why? --device tpu9000", ("device 'tpu9000'", "'cpu'")),
    Case(
        "generate: no prompt file", "generate ./good -f absent.txt", ("--file absent.txt", "cannot be read")
    ),
    Case("generate: hub out of reach", "generate t5-small Why?", ("'t5-small'", "cannot be reached")),
    Case("evaluate: no such artifact", "evaluate ./absent", ("absent", "no such folder")),
    Case("evaluate: damaged", "evaluate ./damaged", ("damaged", "has changed")),
    Case("evaluate: unknown split", "evaluate ./good --split tset", ("--split 'tset'", "validation")),
    Case("evaluate: its data is gone", "evaluate ./good", ("good", "config.yaml")),
    Case("evaluate: training config", "evaluate config.yaml", ("config.yaml", "artifact: …")),
    Case(
        "evaluate: unknown key in a job",
        "evaluate job.yaml",
        ("job.yaml, line 2, split", "'splits'"),
        {"job.yaml": "artifact: a\nsplit: [test]\n"},
    ),
    Case("serve: no such artifact", "serve ./absent", ("absent", "no such folder")),
    Case("serve: damaged", "serve ./damaged", ("damaged", "has changed")),
    Case("serve: no model", "serve ./runs", ("runs", "config.json")),
    Case("serve: hub out of reach", "serve t5-small", ("'t5-small'", "cannot be reached")),
    Case(
        "serve: no batch", "serve ./good --max-batch-size 0", ("max_batch_size", "greater than or equal to 1")
    ),
    Case("submit: outside", "submit ../outside.yaml", ("outside.yaml", "inside the working folder")),
    Case("submit: no such job", "submit absent.yaml", ("absent.yaml", "no such file")),
    Case(
        "submit: unknown key",
        "submit c.yaml",
        ("c.yaml, line 10, output.retries",),
        {"c.yaml": CONFIG + "  retries: 3\n"},
    ),
    Case(
        "submit: results would be lost",
        "submit config.yaml --address http://cluster:8265",
        ("output.storage_path", "all nodes share"),
    ),
    Case(
        "submit: no address",
        "submit config.yaml --address nonsense -s output.storage_path=/shared",
        ("--address", "'nonsense'", "http://"),
    ),
    Case("init: folder is taken", "init runs", ("runs", "not empty", "--force")),
    Case("init: name of a file", "init rows.jsonl", ("rows.jsonl", "file of this name")),
    Case("init: below a file", "init rows.jsonl/new", ("rows.jsonl", "new")),
    Case("init: unusable name", "init a?b", ("'a?b'", "letters")),
    Case(
        "init: T5 continues no text", "init new --model t5-small --task language-modeling", ("causal", "gpt2")
    ),
    Case("init: GPT-2 does not chat", "init new --model gpt2 --task chat", ("gpt2", "no chat template")),
]

USAGE = [
    Case("unknown command", "trian config.yaml", ("trian", "train"), usage=True),
    Case("no config named", "train", ("Missing argument 'config'",), usage=True),
    Case("unknown option", "train config.yaml --epochs 3", ("--epochs",), usage=True),
    Case("init: unknown task", "init new --task poetry", ("poetry", "summarization"), usage=True),
    Case("serve: no such port", "serve ./good --port 99999", ("--port", "65535"), usage=True),
    Case("doctor: no memory", "doctor config.yaml --memory 0", ("--memory",), usage=True),
]
CASES = [*CONFIGS, *DATA, *MODELS, *RUNS, *ARTIFACTS, *USAGE]


@pytest.fixture
def workplace(tmp_path: Path, tiny_artifact_t5: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good config, good rows and artifacts; the hub's port is closed and Ray may not start."""
    folder = tmp_path / "work"
    (folder / "runs" / "kept").mkdir(parents=True)
    (folder / "runs" / "kept" / "note.txt").write_text("kept")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "rows.jsonl").write_text(lines(ROWS))
    (tmp_path / "outside.yaml").write_text(CONFIG)
    for name in ("good", "damaged", "halved"):
        shutil.copytree(tiny_artifact_t5, folder / name)
    write_run(folder, "old")
    weights = folder / "damaged" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    (folder / "halved" / "model" / "tokenizer.json").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(ray, "init", forbidden)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def write_run(folder: Path, name: str) -> None:
    """A run as `rayloom train` leaves it when it is interrupted early."""
    config = load_run_config(folder / "config.yaml", [f"output.run_name={name}"])
    put(folder, {f"runs/{name}/config.yaml": dump_yaml(config)})


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("Ray was started")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
        if "cache" not in path.relative_to(folder).parts
    }


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def check_text(said: str, case: Case) -> None:
    assert "Traceback" not in said
    if case.usage:
        said = " ".join(said.split())
        assert said.startswith("Usage:")
        assert said.count("─ Error ─") == 1
    else:
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1, said
    assert [part for part in case.said if part not in said] == [], said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_gives_one_clear_error(
    case: Case,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(workplace, case.files)
    before = content(workplace.parent)
    monkeypatch.setattr(sys, "argv", ["rayloom", *shlex.split(case.command)])
    start = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        main()
    seconds = time.monotonic() - start
    assert stop.value.code == 2
    check_text(capsys.readouterr().err, case)
    assert content(workplace.parent) == before
    assert seconds < 20


SEPARATE = [
    next(case for case in CASES if case.name == name)
    for name in ("misspelt key", "missing column", "init: unknown task")
]


@pytest.mark.parametrize("case", SEPARATE, ids=lambda case: case.name)
def test_the_installed_command_ends_the_same_way(case: Case, workplace: Path) -> None:
    put(workplace, case.files)
    before = content(workplace.parent)
    environment = {**os.environ, "COLUMNS": "120", "RAYLOOM_CACHE": str(workplace.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "rayloom", *shlex.split(case.command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    check_text(done.stderr, case)
    assert content(workplace.parent) == before
