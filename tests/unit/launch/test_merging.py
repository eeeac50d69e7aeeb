"""`rayloom merge`: from an adapter's artifact to a full model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rayloom.artifacts import GoldenCase, open_artifact
from rayloom.cli.app import app
from rayloom.config import LoraConfig
from rayloom.data import Encoder, PromptInput
from rayloom.errors import ArtifactError
from rayloom.generation import TextGenerator, TransformersGenerator, make_golden
from rayloom.launch.merging import merge_artifact
from tests.unit.models.tiny_models import publish_adapter, template, tiny_model, trained_adapter

PROMPTS = ["Who was Jane Austen?", "Where is Paris?"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.getbasetemp() / "merging-cache"))


def golden_of(family: str) -> list[GoldenCase]:
    adapted, loaded = trained_adapter(family, LoraConfig(r=4)), tiny_model(family)
    generator = TransformersGenerator(adapted, loaded.tokenizer, seq2seq=family == "t5")
    encoder = Encoder(loaded.tokenizer, template(family), max_input_length=32, max_target_length=8)
    return make_golden(generator, encoder, [PromptInput(text) for text in PROMPTS], max_new_tokens=6, min_margin=1e-3)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_merged_artifact_answers_like_the_adapter(family: str, tmp_path: Path) -> None:
    place = publish_adapter(family, tmp_path, golden_of(family))
    result = CliRunner().invoke(app, ["merge", place, str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert "likeliest token equal at 100.0%" in " ".join(result.output.split())
    manifest = open_artifact(tmp_path / "merged").manifest
    assert (manifest.kind, manifest.base) == ("full", None)
    answers = [
        TextGenerator(path).generate_batch(PROMPTS, max_new_tokens=6) for path in (place, str(tmp_path / "merged"))
    ]
    assert answers[0] == answers[1]


def test_a_merge_that_changes_answers_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = publish_adapter("llama", tmp_path, golden_of("llama"))

    def careless(model: object) -> object:
        merged = model.merge_and_unload()  # type: ignore[attr-defined]
        with torch.no_grad():
            merged.lm_head.weight.mul_(-1.0)
        return merged

    monkeypatch.setattr("rayloom.models.drift.merge_adapter", careless)
    with pytest.raises(ArtifactError, match="does not replay golden prompt"):
        merge_artifact(place, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_full_models_and_artifacts_without_golden_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no golden prompts"):
        merge_artifact(publish_adapter("llama", tmp_path / "a"), str(tmp_path / "merged"))
    merged = merge_artifact(publish_adapter("llama", tmp_path / "b", golden_of("llama")), str(tmp_path / "merged"))
    with pytest.raises(ArtifactError, match="full model already"):
        merge_artifact(merged.artifact, str(tmp_path / "again"))
