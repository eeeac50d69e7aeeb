from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    MarianConfig,
    OPTConfig,
    ViTConfig,
)

from rayloom.config import LoraConfig
from rayloom.errors import ModelError
from rayloom.models import (
    FAMILIES,
    attach_lora,
    family_of,
    load_adapter,
    load_family,
    load_model,
    load_trained_weights,
    merge_adapter,
    save_model,
    trainable_parameters,
)
from rayloom.models.loading import _ensure_pad
from tests.unit.models import tiny_models as tiny


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """An own copy of a tiny GPT-2, to spoil."""
    return Path(shutil.copytree(tiny.tiny_source("gpt2").location, tmp_path / "model"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_reload_difference_is_zero_with_stock_transformers(family: str, tmp_path: Path) -> None:
    loaded = tiny.tiny_model(family)
    save_model(loaded.model, loaded.tokenizer, tmp_path)
    auto = AutoModelForSeq2SeqLM if loaded.family.seq2seq else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path)
    assert torch.equal(tiny.logits(loaded.model, loaded), tiny.logits(again, loaded))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_adapter_starts_neutral_and_reloads_exactly(family: str, tmp_path: Path) -> None:
    loaded = tiny.tiny_model(family)
    before = tiny.logits(loaded.model, loaded)
    model = attach_lora(loaded.model, LoraConfig(r=2), loaded.family)
    assert torch.equal(tiny.logits(model, loaded), before)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = tiny.logits(model, loaded)
    assert not torch.equal(trained, before)
    save_model(model, loaded.tokenizer, tmp_path)
    assert not list(tmp_path.glob("model*"))
    base = tiny.tiny_model(family)
    again = load_adapter(base.model, tmp_path)
    assert torch.equal(tiny.logits(again, loaded), trained)
    assert torch.allclose(tiny.logits(merge_adapter(again), loaded), trained, atol=1e-3)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_trained_weights_travel(family: str, lora: LoraConfig | None) -> None:
    one, two = tiny.tiny_model(family), tiny.tiny_model(family)
    models = [attach_lora(each.model, lora, each.family) if lora else each.model for each in (one, two)]
    with torch.no_grad():
        for parameter in trainable_parameters(models[0]).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    load_trained_weights(models[1], {k: v.detach().clone() for k, v in trainable_parameters(models[0]).items()})
    assert torch.equal(tiny.logits(models[0], one), tiny.logits(models[1], two))


def test_foreign_weights_are_refused() -> None:
    model = tiny.tiny_model("gpt2").model
    state = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    tied = state | {"lm_head.weight": state["transformer.wte.weight"]}
    load_trained_weights(model, tied)
    with pytest.raises(ModelError, match=r"unknown: nonsense \(1 in all\)"):
        load_trained_weights(model, state | {"nonsense": torch.zeros(1)})
    short = dict(state)
    short.pop("transformer.wte.weight")
    with pytest.raises(ModelError, match=r"missing: transformer\.wte\.weight"):
        load_trained_weights(model, short)
    with pytest.raises(ModelError, match="has shape"):
        load_trained_weights(model, state | {"transformer.wte.weight": torch.zeros(2, 2)})


def test_an_untied_t5_reloads_exactly(tmp_path: Path) -> None:
    """FLAN-T5's head is not its embedding, whatever the configuration says."""
    source = tiny.tiny_source("t5", options={"tie_word_embeddings": False})
    loaded = load_model(source)
    loaded.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(loaded.model.lm_head.weight))
    save_model(loaded.model, loaded.tokenizer, tmp_path)
    again = load_model(replace(source, location=str(tmp_path), tokenizer_location=str(tmp_path)))
    assert torch.equal(tiny.logits(loaded.model, loaded), tiny.logits(again.model, again))
    assert not again.model.config.scale_decoder_outputs


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_loaded_model_is_ready(family: str) -> None:
    loaded = tiny.tiny_model(family)
    assert not loaded.model.training
    assert loaded.family is FAMILIES[family]  # type: ignore[index]
    assert loaded.family == load_family(tiny.tiny_source(family))
    assert loaded.model.generation_config.pad_token_id == loaded.tokenizer.pad_token_id
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id


def test_generation_leftovers_are_dropped(copied: Path) -> None:
    (copied / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "num_beams": 4, "eos_token_id": [0, 3]})
    )
    source = replace(tiny.tiny_source("gpt2"), location=str(copied))
    generation = load_model(source).model.generation_config
    assert generation.eos_token_id == [0, 3]
    assert not generation.do_sample
    assert generation.temperature in (None, 1.0)
    assert generation.num_beams in (None, 1)


def test_dtype(copied: Path) -> None:
    assert load_model(tiny.tiny_source("llama"), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_generation_type_must_agree() -> None:
    source = tiny.tiny_source("gpt2")
    assert load_model(source, generation_type="causal").family.name == "gpt2"
    with pytest.raises(ModelError, match="is a causal model; model.generation_type says seq2seq"):
        load_model(source, generation_type="seq2seq")


def test_missing_weights_are_not_made_up(copied: Path) -> None:
    change(copied, n_layer=4)
    with pytest.raises(ModelError, match="missing keys: transformer.h.3"):
        load_model(replace(tiny.tiny_source("gpt2"), location=str(copied)))


def test_a_broken_weight_file_is_named(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="weights cannot be loaded"):
        load_model(replace(tiny.tiny_source("gpt2"), location=str(copied)))


def test_a_foreign_tokenizer_is_refused() -> None:
    small = tiny.tiny_source("gpt2", vocab_size=300)
    large = tiny.tiny_source("gpt2")
    with pytest.raises(ModelError, match="do not belong together"):
        load_model(replace(small, tokenizer_location=large.location))


def test_remote_code_is_never_run(copied: Path) -> None:
    (copied / "evil.py").write_text("raise SystemExit('remote code ran')")
    change(copied, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    with pytest.raises(ModelError, match="configuration cannot be read"):
        load_model(replace(tiny.tiny_source("gpt2"), location=str(copied)))


@pytest.mark.parametrize(
    ("vocabulary", "unk", "eos", "wanted"),
    [
        (["<|finetune_right_pad_id|>"], None, "</s>", "<|finetune_right_pad_id|>"),
        ([], "<unk>", "</s>", "<unk>"),
        ([], "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ([], None, None, None),
    ],
)
def test_pad_token(vocabulary: list[str], unk: str | None, eos: str | None, wanted: str | None) -> None:
    fake = SimpleNamespace(
        pad_token_id=None,
        unk_token=unk,
        eos_token=eos,
        pad_token=None,
        get_vocab=lambda: dict.fromkeys(vocabulary, 0),
    )
    if wanted is None:
        with pytest.raises(ModelError, match="neither a pad nor an end-of-sequence"):
            _ensure_pad(fake, Path("x"))
    else:
        _ensure_pad(fake, Path("x"))
        assert fake.pad_token == wanted


def test_families_of_other_models() -> None:
    assert family_of(OPTConfig()) is FAMILIES["causal"]
    assert family_of(MarianConfig()) is FAMILIES["seq2seq"]
    assert family_of(BertConfig(is_decoder=True)) is FAMILIES["causal"]
    for config in (BertConfig(), ViTConfig()):
        with pytest.raises(ModelError, match=f"'{config.model_type}' does not generate text"):
            family_of(config)


def test_wrong_lora_targets_name_the_right_ones() -> None:
    loaded = tiny.tiny_model("llama")
    with pytest.raises(ModelError, match=r"no linear layer 'q_prj'; did you mean 'q_proj'\?; it has: .*down_proj"):
        attach_lora(loaded.model, LoraConfig(target_modules=["k_proj", "q_prj"]), loaded.family)
    model = attach_lora(loaded.model, LoraConfig(r=2, target_modules=["mlp.up_proj"]), loaded.family)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable_parameters(model)} == {"up_proj"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_linear(family: str) -> None:
    loaded = tiny.tiny_model(family)
    model = attach_lora(loaded.model, LoraConfig(r=1, target_modules="all-linear"), loaded.family)
    assert not any("lm_head" in name for name in trainable_parameters(model))
    assert len(trainable_parameters(model)) >= 2 * 4 * 3


def test_gpt2_adapts_attention_only_by_default() -> None:
    loaded = tiny.tiny_model("gpt2")
    names = trainable_parameters(attach_lora(loaded.model, LoraConfig(), loaded.family))
    assert not any(".mlp." in name for name in names)
    assert any(".attn.c_proj." in name for name in names)


def test_the_same_adapter_has_the_same_files(tmp_path: Path) -> None:
    loaded = tiny.tiny_model("llama")
    model = attach_lora(loaded.model, LoraConfig(), loaded.family)
    # The set's order is that of hashes, which each process seeds anew.
    for names in (sorted, lambda each: sorted(each, reverse=True)):
        model.peft_config["default"].target_modules = names(model.peft_config["default"].target_modules)
        save_model(model, loaded.tokenizer, tmp_path / names.__name__)
    config, other = ((tmp_path / name / "adapter_config.json").read_text() for name in ("sorted", "<lambda>"))
    assert json.loads(config)["target_modules"] == sorted(json.loads(config)["target_modules"])
    assert len(json.loads(config)["target_modules"]) > 1
    assert config == other


def test_an_adapter_that_is_none_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter_model"):
        load_adapter(tiny.tiny_model("gpt2").model, tmp_path)
    loaded = tiny.tiny_model("gpt2")
    save_model(attach_lora(loaded.model, LoraConfig(), loaded.family), loaded.tokenizer, tmp_path)
    with pytest.raises(ModelError, match="does not fit its base"):
        load_adapter(tiny.tiny_model("llama").model, tmp_path)
