"""Tiny models of all families."""

from __future__ import annotations

from typing import Any

import torch

from rayloom.config import ModelConfig
from rayloom.models import LoadedModel, ModelSource, load_model, resolve_source

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
