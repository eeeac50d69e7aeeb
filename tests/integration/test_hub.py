"""Artifacts on a hub, by Hugging Face's own client over HTTP: published, opened, loaded by stock libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
import yaml
from huggingface_hub import constants

from rayloom.artifacts import Publication, open_artifact, publish_again
from rayloom.config import ModelConfig
from rayloom.errors import ArtifactError, HubError, ModelError, RayloomError
from rayloom.models import resolve_source
from rayloom.models.sources import find_folder
from rayloom.training.continuing import find_start
from tests.fakes_hub import TOKEN, FakeHub, fake_hub_app
from tests.integration.local_server import running


@pytest.fixture(scope="module")
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture(scope="module")
def url(hub: FakeHub) -> Iterator[str]:
    config = uvicorn.Config(fake_hub_app(hub), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    with running(config) as place:
        yield place


@pytest.fixture(autouse=True)
def hub_of_this_test(hub: FakeHub, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos.clear()
    hub.ignored.clear()
    hub.meanwhile = None
    point_at(url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def elsewhere(*command: str, url: str, home: Path) -> str:
    """What a process prints in a folder, with caches of its own."""
    own = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "RAYLOOM_CACHE": str(home / "rayloom"),
    }
    done = subprocess.run(
        command, env=os.environ | own, cwd=home, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _stock_lines(card: str) -> str:
    (*_, lines) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(lines)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_published_artifact_is_the_very_same_elsewhere(
    kind: str, request: pytest.FixtureRequest, hub: FakeHub, url: str, tmp_path: Path
) -> None:
    artifact = request.getfixturevalue(f"tiny_artifact_{kind}")
    rayloom = [sys.executable, "-m", "rayloom"]
    said = elsewhere(
        *[*rayloom, "publish", str(artifact), "hf://team/qa", "--license", "apache-2.0", "-m", "the first"],
        url=url,
        home=tmp_path,
    )
    assert "published: hf://team/qa" in said
    repo = hub.repos["team/qa"]
    assert repo.private
    assert repo.messages == ["initial commit", "the first"]
    assert ("config.json" if kind == "t5" else "adapter_config.json") in repo.files()
    card = repo.files()["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "rayloom serve hf://team/qa" in card

    # The lines of its card there and of the one in its folder: stock libraries write the same with both.
    prompt = open_artifact(artifact).manifest.golden[0].prompt_ids
    ask = f"import torch\nids = model.generate(torch.tensor([{prompt}]), do_sample=False, max_new_tokens=12)\n"
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    wrote = [
        elsewhere(sys.executable, "-c", f"{_stock_lines(each)}{ask}print('ids:', ids.tolist())", url=url, home=home)
        for each, home in ((card, tmp_path), ((copy / "README.md").read_text(), copy))
    ]
    assert wrote[0] == wrote[1]
    assert "ids: [[" in wrote[0]

    ours = elsewhere(*rayloom, "generate", str(artifact), "Who?", url=url, home=tmp_path)
    theirs = elsewhere(*rayloom, "generate", "hf://team/qa", "Who?", url=url, home=tmp_path)
    assert ours == theirs != ""


def test_a_new_version_is_one_commit_and_other_files_stay(hub: FakeHub, tiny_artifact_t5: Path) -> None:
    artifact = open_artifact(tiny_artifact_t5)
    assert publish_again(artifact, "hf://team/qa/", Publication(public=True)) == "hf://team/qa"
    repo = hub.repos["team/qa"]
    assert not repo.private
    first = open_artifact("hf://team/qa")
    assert first.manifest.golden == artifact.manifest.golden
    assert (first.model_path / "model.safetensors").read_bytes() == (
        artifact.model_path / "model.safetensors"
    ).read_bytes()

    # As if an older version had a file more, and somebody had added a licence by hand.
    extra = {"model/old.json": artifact.manifest.files["config.yaml"]}
    older = first.manifest.model_copy(update={"files": first.manifest.files | extra})
    files = repo.files() | {"old.json": b"{}", "LICENSE": b"mine", "manifest.json": older.model_dump_json().encode()}
    repo.commit("main", files, "older")
    before = len(repo.commits)
    publish_again(artifact, "hf://team/qa")
    assert len(repo.commits) == before + 1
    assert not repo.private
    assert "LICENSE" in repo.files()
    assert "old.json" not in repo.files()
    assert open_artifact("hf://team/qa").manifest == first.manifest

    # What is in its place may be damaged, and a branch is apart.
    repo.commit("main", repo.files() | {"manifest.json": b"{"}, "damaged")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        open_artifact("hf://team/qa")
    publish_again(artifact, "hf://team/qa@next")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        open_artifact("hf://team/qa")
    assert 'revision="next"' in repo.files("next")["README.md"].decode()
    publish_again(artifact, "hf://team/qa")
    assert open_artifact("hf://team/qa").manifest == first.manifest
    assert open_artifact("hf://team/qa@next").manifest.golden == first.manifest.golden


def test_training_goes_on_from_it(tiny_artifact_t5: Path, tiny_artifact_llama: Path) -> None:
    for artifact in (tiny_artifact_t5, tiny_artifact_llama):
        publish_again(open_artifact(artifact), f"hf://team/{artifact.parent.name}")
        name = f"hf://team/{artifact.parent.name}"
        assert find_start(name, note=pytest.fail) is None
        source = resolve_source(ModelConfig(name=name))
        assert not source.portable  # what goes on from it carries it
        local = find_folder(str(artifact))
        weights = "model.safetensors"
        assert (Path(source.location) / weights).read_bytes() == (local / weights).read_bytes()
        with pytest.raises(ModelError, match="add it: @v2"):
            resolve_source(ModelConfig(name=name, revision="v2"))


def test_what_was_fetched_once_needs_no_hub(tiny_artifact_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_again(open_artifact(tiny_artifact_t5), "hf://team/qa")
    there = open_artifact("hf://team/qa")
    point_at("http://127.0.0.1:9", monkeypatch)
    assert open_artifact("hf://team/qa").path == there.path
    with pytest.raises(HubError, match=r"http://127.0.0.1:9 cannot be reached, and it is not in the cache"):
        open_artifact("hf://team/other")
    with pytest.raises(HubError, match="cannot be reached: nothing was published"):
        publish_again(there, "hf://team/qa")


@pytest.mark.parametrize(
    ("destination", "how", "error", "message"),
    [
        ("hf://gpt2", Publication(), ArtifactError, "is hf://OWNER/NAME"),
        ("hf://datasets/team/x", Publication(), ArtifactError, "is hf://OWNER/NAME"),
        ("hf://team/a..b", Publication(), ArtifactError, "takes no such name"),
        ("hf://team/stock", Publication(), ArtifactError, "holds something that is no artifact"),
        ("hf://team/new", Publication(public=True), ArtifactError, "exists and is private"),
        ("hf://other/x", Publication(), HubError, "you may not do this .*rights.*hf auth login"),
        ("hf://team/x", Publication(license="nonsense"), ArtifactError, "refused the model card"),
        ("FOLDER", Publication(public=False), ArtifactError, "is not on the hub"),
        ("FOLDER", Publication(message="m"), ArtifactError, "is not on the hub"),
    ],
)
def test_what_cannot_be_published(
    destination: str,
    how: Publication,
    error: type[RayloomError],
    message: str,
    hub: FakeHub,
    tiny_artifact_t5: Path,
    tmp_path: Path,
) -> None:
    hub.make("team/new", private=True)
    stock = hub.make("team/stock", {"config.json": b"{}"})
    with pytest.raises(error, match=message):
        publish_again(open_artifact(tiny_artifact_t5), destination.replace("FOLDER", str(tmp_path / "there")), how)
    assert len(stock.commits) == 1
    assert not (tmp_path / "there").exists()


def test_nothing_is_lost_or_left_out_in_silence(hub: FakeHub, tiny_artifact_t5: Path) -> None:
    artifact = open_artifact(tiny_artifact_t5)
    repo = hub.make("team/qa")
    hub.meanwhile = lambda repo: repo.commit("main", repo.files() | {"README.md": b"theirs"}, "theirs") and None
    with pytest.raises(HubError, match="somebody else has published there meanwhile"):
        publish_again(artifact, "hf://team/qa")
    assert repo.messages[-1] == "theirs"
    hub.meanwhile = None
    hub.ignored.add("config.yaml")
    with pytest.raises(HubError, match=r"did not take config\.yaml"):
        publish_again(artifact, "hf://team/qa")


@pytest.mark.parametrize(
    ("place", "token", "error", "message"),
    [
        ("hf://team/none", TOKEN, HubError, "no model hf://team/none that you may see"),
        ("hf://team/secret", None, HubError, "no model hf://team/secret that you may see.*hf auth login"),
        ("hf://team/stock", TOKEN, ArtifactError, "is no artifact: it has no manifest.json"),
        ("hf://team/stock@v9", TOKEN, HubError, "not this revision"),
    ],
)
def test_what_cannot_be_opened(
    place: str,
    token: str | None,
    error: type[RayloomError],
    message: str,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.make("team/secret", private=True)
    hub.make("team/stock", {"config.json": b"{}"})
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(error, match=message):
        open_artifact(place)


def test_in_a_folder_it_keeps_its_card_or_gets_one_with_a_licence(tiny_artifact_t5: Path, tmp_path: Path) -> None:
    artifact = open_artifact(tiny_artifact_t5)
    (tiny_artifact_t5 / "notes.txt").write_text("private")
    try:
        there = open_artifact(publish_again(artifact, str(tmp_path / "there"), Publication(license="mit")))
    finally:
        (tiny_artifact_t5 / "notes.txt").unlink()
    assert not (there.path / "notes.txt").exists()
    assert "\nlicense: mit\n" in (there.path / "README.md").read_text()
    assert there.manifest.files.keys() == artifact.manifest.files.keys()
