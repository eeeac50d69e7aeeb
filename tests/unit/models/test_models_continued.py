"""Going on from adapters: trained further, stacked on a merged base, merged with measured drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rayloom.artifacts import open_artifact
from rayloom.config import LoraConfig, ModelConfig
from rayloom.errors import ModelError
from rayloom.models import attach_lora, load_model, open_model, resolve_source
from rayloom.models.drift import merge_with_drift
from tests.unit.models.tiny_models import FAMILIES, logits, publish_adapter, tiny_model, trained_adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_goes_on_where_it_ended(family: str, tmp_path: Path) -> None:
    place = publish_adapter(family, tmp_path)
    loaded = tiny_model(family)
    continued = attach_lora(loaded.model, LoraConfig(r=4, adapter=place), loaded.family)
    wanted = logits(trained_adapter(family, LoraConfig(r=4)), loaded)
    torch.testing.assert_close(logits(continued, loaded), wanted, rtol=0, atol=0)
    trainable = [name for name, parameter in continued.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize(("changes", "message"), [({"r": 8}, "r 4, the run 8"), ({"lora_alpha": 5}, "lora_alpha 32")])
def test_an_adapter_of_another_make_is_refused(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    place = publish_adapter("llama", tmp_path)
    loaded = tiny_model("llama")
    with pytest.raises(ModelError, match=message):
        attach_lora(loaded.model, LoraConfig.model_validate({"r": 4, "adapter": place} | changes), loaded.family)


def test_an_adapter_whose_layers_differ_in_scale_is_refused(tmp_path: Path) -> None:
    trained_adapter("llama", LoraConfig(r=4)).save_pretrained(str(tmp_path), save_embedding_layers=False)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": {"q_proj": 1}}))
    loaded = tiny_model("llama")
    with pytest.raises(ModelError, match="alpha_pattern"):
        attach_lora(loaded.model, LoraConfig(r=4, adapter=str(tmp_path)), loaded.family)


def test_an_adapter_over_another_base_is_refused(tmp_path: Path) -> None:
    place = publish_adapter("llama", tmp_path)
    loaded = tiny_model("llama", seed=2)
    with pytest.raises(ModelError, match="trained over another model"):
        attach_lora(loaded.model, LoraConfig(r=4, adapter=place), loaded.family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finished_adapter_becomes_the_base_of_the_next(family: str, tmp_path: Path) -> None:
    source = resolve_source(ModelConfig(name=publish_adapter(family, tmp_path)))
    assert not source.portable
    merged = load_model(source)
    wanted = logits(trained_adapter(family, LoraConfig(r=4)), merged)
    torch.testing.assert_close(logits(merged.model, merged), wanted, rtol=1e-4, atol=1e-4)
    stacked = attach_lora(load_model(source).model, LoraConfig(r=2), merged.family)
    torch.testing.assert_close(logits(stacked, merged), logits(merged.model, merged), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_of_merging_is_measured(family: str, tmp_path: Path) -> None:
    loaded = open_model(open_artifact(publish_adapter(family, tmp_path)))
    before = logits(loaded.model, loaded)
    merged, drift = merge_with_drift(loaded.model, [([5, 6, 7], [8, 9]), ([10, 11], [12])])
    assert drift.num_tokens == (3 + 2 if loaded.family.seq2seq else 5 + 3)
    assert 0 < drift.largest < 1e-3
    assert drift.equal_tokens == 1.0
    torch.testing.assert_close(logits(merged, loaded), before, rtol=1e-4, atol=1e-4)


def test_drift_tells_a_wrong_merge() -> None:
    adapted = trained_adapter("llama", LoraConfig(r=4))
    for module in adapted.modules():
        if hasattr(module, "get_delta_weight"):
            module.get_delta_weight = lambda adapter: torch.zeros(())
    _, drift = merge_with_drift(adapted, [([5, 6, 7, 8], [9])])
    assert drift.largest > 1e-3
