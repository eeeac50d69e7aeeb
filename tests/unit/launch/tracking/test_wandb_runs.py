from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from rayloom.config import WandbConfig
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.trackers import Outcome
from rayloom.launch.tracking.wandb_runs import Wandb
from tests.fakes_tracking import eval_record, run_config, step_record, wandb_records


def written(place: Path, events: list[Event], outcome: Outcome) -> None:
    settings = WandbConfig(project="mills", mode="offline")
    tracker = Wandb(RunFolder(str(place)), run_config(), settings, run_name="a")
    tracker.start()
    tracker.log(events)
    tracker.finish(outcome)


def rows(found: list[Record]) -> list[dict[str, Any]]:
    """What was logged, call by call."""
    logged = [record.history for record in found if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in logged]


def summary(found: list[Record]) -> dict[str, Any]:
    updates = [record.summary.update for record in found if record.WhichOneof("record_type") == "summary"]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for part in updates for item in part}


def test_offline_files_hold_the_run_and_resumed_parts_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "manifest.json").write_text("{}")
    written(tmp_path, [step_record(10)], Outcome("failed", error="a node was lost"))
    outcome = Outcome("finished", artifact=str(artifact), metrics={"loss": 1.5})
    written(tmp_path, [Note("resumed at step 10"), step_record(20), eval_record(20)], outcome)
    parts = [list(wandb_records(path)) for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))]
    assert len(parts) == 2
    runs = [next(record.run for record in part if record.WhichOneof("record_type") == "run") for part in parts]
    assert len({run.run_id for run in runs}) == 1
    assert [(run.project, run.display_name) for run in runs] == [("mills", "a")] * 2
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["model"]["name"] == "t5-small"

    assert (rows(parts[0])[0]["step"], rows(parts[0])[0]["train/loss"]) == (10, 4.5)
    train, validation = rows(parts[1])
    assert (train["step"], train["train/memory_bytes"]) == (20, 3 << 29)
    assert (validation["validation/rougeL"], validation["samples/nrows"]) == (0.25, 1)
    assert summary(parts[0])["error"] == "a node was lost"
    end = summary(parts[1])
    assert (end["notes"], end["final/loss"], end["artifact"]) == ("resumed at step 10", 1.5, str(artifact))
    kinds = [record.WhichOneof("record_type") for record in parts[1]]
    assert "artifact" in kinds or any(
        "artifact" in str(record.request.WhichOneof("request_type")) for record in parts[1]
    )
