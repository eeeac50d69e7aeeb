"""What is particular to a registry in MLflow; `test_mlflow_like_embedded` has what both have in common."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from mlflow.tracking import MlflowClient

from rayloom.artifacts import open_artifact
from rayloom.errors import ConfigError, RegistryError
from rayloom.registry import Registry, Version, locate, open_registry
from rayloom.registry.mlflow_registry import MlflowRegistry
from tests.unit.registry.publishing import publish_artifact
from tests.unit.registry.test_registry import filled, stages, verdict


@pytest.fixture
def registry(place: str) -> Registry:
    return open_registry()


def client(place: str) -> MlflowClient:
    uri = place.removeprefix("mlflow+")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_mlflows_own_users_see_stages_and_lineage(registry: Registry, place: str, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    registry.promote(verdict(registry, 1).id)
    registry.promote(verdict(registry, 2).id)
    registry.nominate("qa@3")
    mlflow = client(place)
    assert dict(mlflow.get_registered_model("qa").aliases) == {"archived": 1, "production": 2, "candidate": 3}
    found = mlflow.get_model_version_by_alias("qa", "production")
    assert found.tags["rayloom.stage"] == "production"
    assert found.tags["rayloom.data_hash"] == "d" * 64
    assert found.tags["rayloom.commit"] == "0123456789abcdef"
    files = mlflow.list_artifacts(found.run_id, "artifact")
    assert "artifact/manifest.json" in [file.path for file in files]
    registry.rollback("qa", expected=2)
    assert dict(mlflow.get_registered_model("qa").aliases) == {"archived": 2, "production": 1, "candidate": 3}


def test_files_lie_beside_the_database_whatever_the_folder(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = publish_artifact(tmp_path, "one")
    registry.register("qa", source)
    shutil.rmtree(source)
    monkeypatch.chdir(tmp_path / "shared")
    where = locate("qa@1")
    assert Path(where).is_relative_to(tmp_path / "shared" / "registry-artifacts")
    assert open_artifact(where).manifest.name == "one"


def test_a_report_is_kept_and_a_changed_one_noticed(registry: Registry, place: str, tmp_path: Path) -> None:
    filled(registry, tmp_path, 1)
    version = registry.attach_report("qa@1", b'{"a": 1}', {"test.rougeL": 0.5, "test.perplexity": 12.0})
    assert version.report.metrics["test.rougeL"] == 0.5
    assert registry.read_report(version) == b'{"a": 1}'
    run_id = version.report.path.removeprefix("runs:/").partition("/")[0]
    run = client(place).get_run(run_id)
    assert run.data.metrics["test.perplexity"] == 12.0
    (tmp_path / "shared" / "registry-artifacts" / run_id / "artifacts" / "report.json").write_text("{}")
    with pytest.raises(RegistryError, match="is gone or was changed: rayloom evaluate qa@1 --attach"):
        registry.read_report(registry.get("qa@1"))


class Late(MlflowRegistry):
    """Waits, after it has looked, until the other one has looked as well: then both append."""

    meeting: threading.Barrier | None = None

    def _append(self, event: Any) -> int:
        if event.kind == "promoted" and self.meeting is not None:
            self.meeting.wait(timeout=60)
        return super()._append(event)


def test_of_two_promotions_at_once_one_is_void(registry: Registry, place: str, tmp_path: Path) -> None:
    filled(registry, tmp_path, 3)
    registry.promote(verdict(registry, 1).id)
    judged = [verdict(registry, version).id for version in (2, 3)]
    meeting = threading.Barrier(2)
    outcomes: list[Version | RegistryError] = []

    def promote(number: int) -> None:
        late = Late(place.removeprefix("mlflow+"))
        late.meeting = meeting
        try:
            outcomes.append(late.promote(number))
        except RegistryError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=promote, args=(number,)) for number in judged]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [each for each in outcomes if isinstance(each, Version)]
    (loser,) = [each for each in outcomes if isinstance(each, RegistryError)]
    assert f"has version {winner.version} in production by now, not version 1" in str(loser)
    assert sorted(stages(registry)) == ["archived", "none", "production"]
    assert registry.get("qa").version == winner.version
    assert client(place).get_registered_model("qa").aliases["production"] == winner.version
    assert [change.action for change in registry.history("qa")].count("promoted") == 2


def test_the_log_decides_and_aliases_that_were_left_behind_follow(
    registry: Registry, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(registry, tmp_path, 2)
    registry.promote(verdict(registry, 1).id)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowRegistry, "show_stages", lambda self, model, ledger: None)  # killed right after its append
        registry.promote(verdict(registry, 2).id)
    assert client(place).get_registered_model("qa").aliases["production"] == 1
    assert registry.get("qa@production").version == 2
    # Nor does an alias that somebody sets by hand go past the gate.
    registry.register("qa", publish_artifact(tmp_path, "ungated"))
    client(place).set_registered_model_alias("qa", "production", "3")
    assert registry.get("qa@production").version == 2
    registry.nominate("qa@3")
    assert client(place).get_registered_model("qa").aliases["production"] == 2


def test_somebody_elses_models_and_versions_are_left_alone(registry: Registry, place: str, tmp_path: Path) -> None:
    mlflow = client(place)
    mlflow.create_registered_model("forecast")
    mlflow.create_registered_model("qa")
    mlflow.create_model_version("qa", "s3://elsewhere/model")
    assert registry.models() == []
    with pytest.raises(RegistryError, match="the registry is empty"):
        registry.get("qa@1")
    assert registry.register("qa", publish_artifact(tmp_path, "one")).version == 2
    assert [version.version for version in registry.versions("qa")] == [2]
    assert mlflow.get_model_version("qa", "1").source == "s3://elsewhere/model"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("mlflow+postgresql://db/models", RegistryError, "put a server before them"),
        ("mlflow+/tmp/mlruns", RegistryError, r"mlflow\+sqlite"),
        ("mlflow+http://user:word@host:5000", ConfigError, "leave user and password out"),
    ],
)
def test_places_that_cannot_be_are_told(wrong: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_registry(wrong)


def test_the_embedded_registry_does_not_take_mlflows_place(place: str) -> None:
    with pytest.raises(RegistryError, match="is no folder"):
        Registry()


def test_a_server_that_is_down_is_told() -> None:
    with pytest.raises(RegistryError, match=r"the MLflow registry http://127\.0\.0\.1:9 cannot be used"):
        open_registry("mlflow+http://127.0.0.1:9").models()
