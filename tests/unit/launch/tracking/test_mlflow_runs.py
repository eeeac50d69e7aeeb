from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rayloom.config import MlflowConfig
from rayloom.launch.progress import Event, Note
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.mlflow_runs import Mlflow
from rayloom.launch.tracking.trackers import Background, Outcome, Patience
from tests.fakes_tracking import SAMPLE, eval_record, run_config, step_record


@pytest.fixture(params=["folder", "database"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a database's artifacts lie in ./mlruns
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(tmp_path / "mlruns") if request.param == "folder" else f"sqlite:///{tmp_path}/mlflow.db"


def tracker(place: Path, uri: str) -> Mlflow:
    return Mlflow(RunFolder(str(place)), run_config(), MlflowConfig(uri=uri, experiment="mills"), run_name="a")


def written(place: Path, uri: str, events: list[Event], outcome: Outcome) -> None:
    opened = tracker(place, uri)
    opened.start()
    opened.log(events)
    opened.log([])
    opened.finish(outcome)


def test_the_client_finds_one_run_however_often_it_was_resumed(tmp_path: Path, uri: str) -> None:
    place, artifact = tmp_path / "run", tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "manifest.json").write_text("{}")
    written(place, uri, [step_record(10), step_record(20)], Outcome("failed", error="a node was lost"))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mills")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["rayloom.error"]) == ("FAILED", "a node was lost")

    events: list[Event] = [Note("resumed at step 20"), step_record(30), eval_record(30)]
    written(place, uri, events, Outcome("finished", artifact=str(artifact), metrics={"loss": 1.5}))
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")
    assert run.data.params["model.name"] == "t5-small"
    assert run.data.params["training.num_epochs"] == "3"
    assert run.data.tags["rayloom.artifact"] == str(artifact)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(10, 4.5), (20, 4.0), (30, 3.5)]
    assert (run.data.metrics["validation/rougeL"], run.data.metrics["final/loss"]) == (0.25, 1.5)

    download = tmp_path / "download"
    download.mkdir()
    files = client.download_artifacts(run.info.run_id, "", str(download))
    assert json.loads((Path(files) / "samples/step-00000030.json").read_text()) == [SAMPLE]
    assert "t5-small" in (Path(files) / "config.yaml").read_text()
    assert (Path(files) / "artifact/manifest.json").read_text() == "{}"
    assert [path.read_text() for path in (Path(files) / "notes").iterdir()] == ["resumed at step 20"]


def test_a_server_that_is_down_is_dropped(tmp_path: Path) -> None:
    warnings: list[str] = []
    down = tracker(tmp_path, "http://127.0.0.1:9")  # the discard port: nobody listens
    background = Background(down, warn=warnings.append, patience=Patience(attempts=2, pause_s=0.001))
    background(step_record(10))
    background.finish(Outcome("finished"))
    background.wait(time.monotonic() + 120)
    assert len(warnings) == 1
    assert "MLflow is not fed any more" in warnings[0]
