"""What a job is told about places, and what of the working folder travels with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.thirdparty.pathspec import PathSpec

from rayloom.config import load_job
from rayloom.config.loading import read_values
from rayloom.errors import ConfigError
from rayloom.launch import submission

HERE, ELSEWHERE = "http://127.0.0.1:8265", "http://10.0.0.7:8265"
TRAINING = "model: {name: %s}\ndataset: {train_file: rows.jsonl}\noutput: {storage_path: %s, artifact_path: %s}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my: project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def settings(text: str, address: str, tmp_path: Path) -> dict[str, object]:
    """The job's places, as the command on the cluster reads them."""
    path = Path("job.yaml")
    path.write_text(text)
    *_, file = command = submission._command(load_job(path), path, address, [])
    assert command[:4] == ["python", "-m", "rayloom", command[3]]
    sets = [value for flag, value in zip(command, command[1:], strict=False) if flag == "--set"]
    (tmp_path / "empty.yaml").write_text("{}")
    read, _ = read_values(tmp_path / "empty.yaml", sets)
    return read


def test_the_artifact_of_a_job_lies_where_the_config_says_and_not_in_the_upload(project, tmp_path):
    assert settings(TRAINING % ("t5-small", "runs", "artifact"), HERE, tmp_path) == {
        "output": {"storage_path": str(project / "runs"), "artifact_path": str(project / "artifact")}
    }


@pytest.mark.parametrize("key", ["output.storage_path", "output.artifact_path"])
def test_on_another_machine_results_need_storage_that_all_nodes_share(project, tmp_path, key):
    places = {"output.storage_path": "s3://bucket/runs", "output.artifact_path": "/shared/artifact", key: "mine"}
    with pytest.raises(ConfigError, match=r"'mine' would be a folder in the job's upload") as raised:
        settings(TRAINING % ("t5-small", *places.values()), ELSEWHERE, tmp_path)
    assert key in str(raised.value)


def test_what_is_not_uploaded_is_found_where_it_is(project, tmp_path):
    Path("artifact").mkdir()
    Path("runs/first").mkdir(parents=True)
    found = settings("artifact: artifact\noutput: /shared\n", HERE, tmp_path)
    assert found == {"artifact": str(project / "artifact")}
    text = TRAINING % ("runs/first", "/shared/runs", "/shared/artifact")
    assert settings(text, HERE, tmp_path) == {"model": {"name": str(project / "runs/first")}}
    with pytest.raises(ConfigError, match=r"'runs/first' is not uploaded"):
        settings(text, ELSEWHERE, tmp_path)


def test_the_label_of_a_random_model_is_no_folder(project, tmp_path):
    Path("tiny").mkdir()
    text = TRAINING % ("tiny, random_init: {family: gpt2}", "/shared/runs", "/shared/artifact")
    assert settings(text, HERE, tmp_path) == {}
    assert settings(text.replace(", random_init: {family: gpt2}", ""), HERE, tmp_path) == {
        "model": {"name": str(project / "tiny")}
    }


@pytest.mark.parametrize("name", ["t5-small", "google/flan-t5-small", "package:pip/x.gguf", "s3://bucket/model"])
@pytest.mark.parametrize("address", [HERE, ELSEWHERE])
def test_names_that_lead_elsewhere_stay(project, tmp_path, name, address):
    assert settings(TRAINING % (f'"{name}"', "/shared/runs", "~/artifact"), address, tmp_path) == {}


def test_only_results_at_the_top_stay_at_home():
    left_out = PathSpec.from_lines("gitwildmatch", submission._EXCLUDED)
    home = ["runs/first/config.yaml", "sweeps", "reports/a.html", ".venv/bin/python", "docs/__pycache__/x.pyc"]
    travelling = ["data/reports/train.jsonl", "data/runs/rows.csv", "jobs/runs.yaml", "config.yaml"]
    assert set(left_out.match_files([*home, *travelling])) == set(home)
