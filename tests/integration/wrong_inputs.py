"""Configs and data files that are wrong, and what the command line must say of each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

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
    {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Ho"}]} for n in range(20)
]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True)
class Case:
    """One wrong input.

    ``said`` is what the one error must contain; ``files`` are put into the working folder first.
    """

    name: str
    command: str
    said: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    usage: bool = False


def config_case(name: str, text: str | bytes, *said: str) -> Case:
    return Case(name, "train c.yaml", said, {"c.yaml": text})


def data_case(name: str, file: str, content: str | bytes, *said: str, sets: str = "") -> Case:
    return Case(name, f"train config.yaml -s dataset.train_file={file} {sets}", (file, *said), {file: content})


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
    config_case("wrong section", CONFIG + "  batch_size: 4\n", "line 10, output.batch_size", "'training.batch_size'"),
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
    config_case("duplicate key", CONFIG + "  storage_path: b\n", "c.yaml, line 10, output.storage_path", "twice"),
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
    Case("doctor: wrong type", "doctor config.yaml -s training.fp16=maybe", ("--set, training.fp16", "maybe")),
    Case(
        "set without a value",
        "train config.yaml --set training.num_epochs",
        ("--set 'training.num_epochs'", "a.b=c"),
    ),
    Case("set is no YAML", "train config.yaml --set training.num_epochs=[", ("--set", "not valid YAML")),
    Case("set below a value", "train config.yaml --set training.num_epochs.x=1", ("'num_epochs' is a value",)),
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
    data_case("data in UTF-16", "data.csv", "question,answer\n".encode("utf-16"), "UTF-16", "save it as UTF-8"),
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
