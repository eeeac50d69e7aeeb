"""Datasets on a hub, by the ``datasets`` library over HTTP: read whole and streamed, in a process of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn

from tests.fakes_hub import TOKEN, FakeHub, fake_hub_app
from tests.integration.local_server import running

CARD = b"""---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*}
  - {split: dev, path: plain/dev-*}
- config_name: other
  data_files: other.jsonl
---
"""
READ = """
import json, sys
from rayloom.config import DatasetConfig
from rayloom.data import columns_for, load_splits
from rayloom.errors import RayloomError

def read(**values):
    dataset = DatasetConfig(**values)
    try:
        splits = load_splits(dataset, columns_for(dataset, "question-answering"))
    except RayloomError as error:
        return f"{type(error).__name__}: {error}"
    rows = {split: [dict(row) for row in splits.rows(split)] for split in ("train", "validation", "test")}
    return {"how": splits.how, "rows": rows}

print(json.dumps([read(**values) for values in json.loads(sys.argv[1])]))
"""


def questions(start: int, stop: int) -> bytes:
    rows = [{"question": f"What is {number}?", "answer": str(number)} for number in range(start, stop)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    hub = FakeHub()
    parts = {"train-00000-of-00002": (0, 40), "train-00001-of-00002": (40, 60), "dev-00000-of-00001": (60, 70)}
    files = {f"plain/{name}.parquet": questions(*numbers) for name, numbers in parts.items()}
    hub.make("team/questions", {"README.md": CARD, "other.jsonl": b'{"question": "a", "answer": "b"}\n', **files})
    hub.make("team/secret", {"README.md": CARD, **files}, private=True)
    config = uvicorn.Config(fake_hub_app(hub), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    with running(config) as place:
        yield place


def read(url: str, home: Path, *asked: dict[str, Any], token: str = TOKEN, offline: bool = False) -> list[Any]:
    """What `load_splits` gives for each, or its error."""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    own |= {"RAYLOOM_CACHE": str(home / "rayloom"), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", READ, json.dumps(asked)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_by_name_whole_streamed_and_offline(url: str, tmp_path: Path) -> None:
    plain = {"name": "team/questions", "subset": "plain"}
    whole, streamed = read(url, tmp_path, plain, plain | {"streaming": True})
    assert whole["how"].startswith("whole: 0 MiB of rows")
    assert streamed["how"].startswith("streamed")
    assert whole["rows"] == streamed["rows"]
    assert [len(whole["rows"][split]) for split in ("train", "validation", "test")] == [54, 10, 6]
    assert whole["rows"]["validation"][0] == {"question": "What is 60?", "answer": "60"}
    assert read("http://127.0.0.1:9", tmp_path, plain, offline=True) == [whole]


def test_what_is_not_there_is_told(url: str, tmp_path: Path) -> None:
    names = ({"name": "team/questions"}, {"name": "team/questions", "subset": "none"}, {"name": "team/nothing"})
    no_name, no_such, nothing = read(url, tmp_path, *names)
    assert no_name.startswith("ConfigError: dataset.subset: dataset 'team/questions' has subsets: name one; there are")
    assert (
        no_such == "ConfigError: dataset.subset: dataset 'team/questions' has no subset 'none'; there are: plain, other"
    )
    assert nothing.startswith("HubError: the hub has no dataset 'team/nothing' that you may read")
    (secret,) = read(url, tmp_path, {"name": "team/secret", "subset": "plain"}, token="")
    assert secret.startswith("HubError: the hub has no dataset 'team/secret' that you may read")
