from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayloom.cli.evaluate import evaluate
from rayloom.cli.generate import generate
from rayloom.cli.models import models_app
from rayloom.errors import RegistryError, RequestError
from rayloom.registry import Registry
from tests.unit.generation.artifacts import make_artifact
from tests.unit.registry.publishing import publish_artifact

app = typer.Typer()
app.command()(generate)
app.command()(evaluate)
app.add_typer(models_app, name="models")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp("t5"), "t5", max_new_tokens=6)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "registry"


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_from_registration_to_production_and_back(artifact: Path, tmp_path: Path) -> None:
    assert "registered: qa@1" in run("models", "register", "qa", str(artifact))
    (tmp_path / "gate.yaml").write_text("metrics: {rougeL: {min: 0.0}}\n")
    assert "rougeL" in run("models", "gate", "qa", str(tmp_path / "gate.yaml"))
    assert "not passed" in run("models", "check", "qa@1", "--device", "cpu", code=1)
    with pytest.raises(RegistryError, match="does not pass the gate: report: not measured yet"):
        run("models", "promote", "qa@1", "--device", "cpu")
    options = ["--split", "test", "-o", str(tmp_path / "out"), "--set", "evaluation.latency_prompts=0"]
    assert "attached to qa@1" in run("evaluate", "qa@1", "--attach", "--device", "cpu", *options)
    output = run("models", "promote", "qa@1", "--device", "cpu")
    assert "2 prompts gave the recorded tokens" in output
    assert "qa@1 is production now" in output
    expected = run("generate", str(artifact), "River 4?")
    assert run("generate", "qa@production", "River 4?") == expected
    assert "test: rougeL" in run("models", "list", "qa")
    with pytest.raises(RegistryError, match="no earlier production version"):
        run("models", "rollback", "qa")
    assert "promoted" in run("models", "show", "qa")


def test_candidates_archives_and_tables(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("models", "register", "qa", publish_artifact(tmp_path, name, data_hash=name[0] * 64), "--note", name)
    assert "qa@2 is candidate now" in run("models", "promote", "qa@2", "--to", "candidate")
    assert "qa@1 is archived" in run("models", "archive", "qa@1")
    table = run("models", "list", "qa")
    assert "candidate" in table
    assert "archived" in table
    assert "qa" in run("models", "list")
    assert "lineage: data_hash" in run("models", "diff", "qa@1", "qa@2")
    assert "equal lineage" in run("models", "diff", "qa@1", "qa@1")


def test_scripts_get_json(tmp_path: Path) -> None:
    made = json.loads(run("models", "register", "qa", publish_artifact(tmp_path, "one"), "--json"))
    assert (made["model"], made["version"], made["stage"]) == ("qa", 1, "none")
    run("models", "register", "qa", publish_artifact(tmp_path, "two", metrics={"loss": 1.0}))
    assert json.loads(run("models", "list", "--json"))[0]["newest"] == 2
    assert [each["version"] for each in json.loads(run("models", "list", "qa", "--json"))] == [1, 2]
    shown = json.loads(run("models", "show", "qa@2", "--json"))
    assert shown["version"]["lineage"]["run"] == "two"
    assert shown["gate"]["golden_replay"] is True
    assert shown["history"][0]["action"] == "registered"
    changed = {each["key"]: each for each in json.loads(run("models", "diff", "qa@1", "qa@2", "--json"))}
    assert changed["loss"]["change"] == -0.25


def test_rollback_names_what_serves_now(tmp_path: Path, root: Path) -> None:
    for name in ("one", "two"):
        run("models", "register", "qa", publish_artifact(tmp_path, name))
    (tmp_path / "gate.yaml").write_text("golden_replay: false\n")
    run("models", "gate", "qa", str(tmp_path / "gate.yaml"))
    for version in ("qa@1", "qa@2"):
        run("models", "promote", version)
    assert "qa@1 is production again, in place of qa@2" in run("models", "rollback", "qa")
    assert Registry(root).get("qa").version == 1


def test_an_empty_registry_and_wrong_names_are_told(tmp_path: Path) -> None:
    assert "no models in" in run("models", "list").replace("\n", "")
    with pytest.raises(RegistryError, match="the registry is empty"):
        run("models", "show", "qa")
    with pytest.raises(RegistryError, match="the registry is empty"):
        run("generate", "qa@production", "River")
    with pytest.raises(RequestError, match="--attach needs a version of the registry"):
        run("evaluate", str(tmp_path), "--attach")


def test_a_list_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    run("models", "register", "qa", publish_artifact(tmp_path, "one"))
    code = (
        "import sys; from rayloom.cli.models import list_; list_('qa', None, False); list_(None, None, False); "
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
