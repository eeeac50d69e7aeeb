"""Random initialisations: a tokenizer trained on the user's own rows, and weights from a seed."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
)

from rayloom.artifacts import cache_root, publish_folder
from rayloom.config import RandomInit
from rayloom.errors import ModelError
from rayloom.models.quiet import no_progress_bars

Corpus = Callable[[], Iterable[str]]

_VERSION = 1
"""Grows when the same arguments should give another model."""
_LIBRARIES = ("torch", "transformers", "tokenizers")
_END_OF_TEXT = "<|endoftext|>"

_SPECIAL_TOKENS: dict[str, dict[str, str]] = {
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gpt2": {"eos_token": _END_OF_TEXT, "bos_token": _END_OF_TEXT, "pad_token": "<|pad|>"},
    "gpt_neo": {"eos_token": _END_OF_TEXT, "bos_token": _END_OF_TEXT, "pad_token": "<|pad|>"},
    "llama": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
}
"""In the order of their ids, from 0."""
_TEMPLATES = {"t5": "$A </s>", "llama": "<s> $A"}
"""What the families' own tokenizers put around a text."""


def materialise_random(init: RandomInit, corpus: Corpus | None, *, seed: int, tokenizer: str | None = None) -> Path:
    """The folder of a random initialisation; made once per arguments, corpus and library versions.

    Args:
        init: Architecture and sizes.
        corpus: Gives the texts that the tokenizer is trained on, anew at each call.
        seed: Of the weights.
        tokenizer: Folder of a tokenizer to take instead of training one.

    Raises:
        ModelError: Neither corpus nor tokenizer, an empty corpus, or options that the architecture lacks.
    """
    if corpus is None and tokenizer is None:
        raise ModelError("model.random_init trains its tokenizer on the train rows, and none were given")
    key = {
        "init": init.model_dump(mode="json"),
        "seed": seed,
        "texts": tokenizer or _digest(corpus),
        "versions": [importlib.metadata.version(library) for library in _LIBRARIES],
        "version": _VERSION,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]

    def build(folder: Path) -> None:
        own = _load(tokenizer) if tokenizer else train_tokenizer(init, corpus)
        model = build_model(random_config(init, own), seed=seed)
        own.save_pretrained(folder)
        with no_progress_bars():
            model.save_pretrained(folder)

    return publish_folder(cache_root() / "models" / f"random-{init.family}-{digest}", build)


def train_tokenizer(init: RandomInit, corpus: Corpus | None) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer: it can write any text, and reads its own output back exactly.

    Raises:
        ModelError: The corpus holds no text.
    """
    special = _SPECIAL_TOKENS[init.family]
    names = list(dict.fromkeys(special.values()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=init.vocab_size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus() if corpus else (), trainer)
    if init.family in _TEMPLATES:
        ids = [(name, tokenizer.token_to_id(name)) for name in names]
        tokenizer.post_processor = processors.TemplateProcessing(single=_TEMPLATES[init.family], special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def random_config(init: RandomInit, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers configuration that a `RandomInit` means with a tokenizer.

    Raises:
        ModelError: An option that the architecture does not have, or a contradiction.
    """
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return _config(init, ids)


def planned_config(init: RandomInit) -> Any:
    """As `random_config`, before there is a tokenizer: with the vocabulary that was asked for."""
    return _config(init, {"vocab_size": init.vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1})


def _config(init: RandomInit, ids: dict[str, Any]) -> Any:
    values = _architecture(init) | ids
    defaults = _CONFIGS[init.family]()
    known = sorted(set(defaults.to_dict()) | set(defaults.attribute_map))
    for option in init.options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ModelError(f"model.random_init.options: {init.family} has no field '{option}'{hint}")
    if init.family == "t5":
        values["decoder_start_token_id"] = ids["pad_token_id"]
    try:
        return _CONFIGS[init.family](**(values | init.options))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"model.random_init: {init.family} cannot be built like this: {error}") from error


def build_model(hf_config: Any, *, seed: int) -> Any:
    """A model with random weights; the process's own random state stays as it was."""
    auto = AutoModelForSeq2SeqLM if hf_config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return auto.from_config(hf_config, dtype=torch.float32).eval()


_CONFIGS: dict[str, Any] = {
    "t5": T5Config,
    "gpt2": GPT2Config,
    "gpt_neo": GPTNeoConfig,
    "llama": LlamaConfig,
}


def _architecture(init: RandomInit) -> dict[str, Any]:
    """Sizes under the names that each family's configuration has for them."""
    width, layers, heads = init.hidden_size, init.num_layers, init.num_heads
    inner = init.intermediate_size or 4 * width
    if init.family == "t5":
        return {
            "d_model": width,
            "d_kv": width // heads,
            "d_ff": inner,
            "num_layers": layers,
            "num_heads": heads,
            "tie_word_embeddings": True,
        }
    if init.family == "gpt2":
        return {
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": inner,
            "n_positions": init.max_positions,
        }
    common = {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": init.max_positions,
    }
    if init.family == "gpt_neo":
        return common | {"attention_types": attention_types(layers)}
    renamed = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
    return {renamed.get(k, k): v for k, v in common.items()} | {"num_key_value_heads": heads}


def attention_types(num_layers: int) -> list[list[Any]]:
    """GPT-Neo's alternation of global and local attention, for any number of layers."""
    pairs, single = divmod(num_layers, 2)
    types: list[list[Any]] = [[["global", "local"], pairs]] if pairs else []
    return [*types, [["global"], 1]] if single else types


def _load(folder: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def _digest(corpus: Corpus | None) -> str:
    digest, num_texts = hashlib.sha256(), 0
    for text in corpus() if corpus else ():
        content = text.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
        num_texts += bool(content)
    if not num_texts:
        raise ModelError("model.random_init trains its tokenizer on the train rows, and they hold no text")
    return digest.hexdigest()
