"""Tiny models of all families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rayloom.artifacts import BaseModelRef, GoldenCase, Limits, Manifest, publish
from rayloom.config import LoraConfig, ModelConfig
from rayloom.data import PromptTemplate
from rayloom.models import (
    LoadedModel,
    ModelSource,
    attach_lora,
    copy_base,
    load_model,
    resolve_source,
    save_model,
)

FAMILIES = ("t5", "gpt2", "gpt_neo", "llama")
TEXTS = ["Who was Jane Austen? An English novelist.", "Where is Paris? In France, a naïve café says."] * 20


def tiny_config(family: str, **changes: Any) -> ModelConfig:
    sizes = {"family": family, "hidden_size": 32, "num_layers": 3, "vocab_size": 320, "max_positions": 64}
    return ModelConfig.model_validate({"name": "tiny", "random_init": sizes | changes})


def tiny_source(family: str, *, seed: int = 1, **changes: Any) -> ModelSource:
    return resolve_source(tiny_config(family, **changes), lambda: TEXTS, seed=seed)


def tiny_model(family: str, *, seed: int = 1) -> LoadedModel:
    return load_model(tiny_source(family, seed=seed))


def logits(model: Any, loaded: LoadedModel) -> torch.Tensor:
    ids_BT = torch.tensor([loaded.tokenizer("Who was naïve in Paris?").input_ids])
    more = {"decoder_input_ids": ids_BT} if loaded.family.seq2seq else {}
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=ids_BT, **more).logits
    return result


def template(family: str) -> PromptTemplate:
    return PromptTemplate(task="question-answering", seq2seq=family == "t5")


def trained_adapter(family: str, lora: LoraConfig) -> Any:
    """An adapter whose every weight is random, as training leaves it."""
    loaded = tiny_model(family)
    adapted = attach_lora(loaded.model, lora, loaded.family)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted.eval()


def publish_adapter(family: str, folder: Path, golden: list[GoldenCase] | None = None) -> str:
    """An artifact of `trained_adapter`, rank 4, that carries its base."""
    adapted, loaded = trained_adapter(family, LoraConfig(r=4)), tiny_model(family)
    build = folder / "build"
    save_model(adapted, loaded.tokenizer, build / "adapter")
    copy_base(tiny_source(family), build / "base")
    (build / "config.yaml").write_text("model: {name: tiny}\n")
    manifest = Manifest(
        name="tiny",
        kind="adapter",
        family=loaded.family.name,
        seq2seq=loaded.family.seq2seq,
        base=BaseModelRef(name="base"),
        template=template(family).model_dump(),
        limits=Limits(max_input_length=32, max_target_length=8),
        golden=golden or [],
        data_hash="",
        config_hash="",
        code_version="0",
        created="2026-01-01T00:00:00+00:00",
    )
    return publish(build, str(folder / "artifact"), manifest)
