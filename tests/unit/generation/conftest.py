from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from rayloom.engine import EngineOptions, EngineService, open_engine
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.resolving import Addressing, Resolver
from rayloom.generation.transformers_generator import TransformersGenerator

TEXTS = [
    "The river flows slowly past the old mill, and the miller counts his sacks of grain.",
    "Question: what is the capital of France? Answer: Paris. Was ist das? Ein schöner Fluß.",
    "a cat sat on the mat while another cat, a concatenation of cats, slept. 日本語 naïve café 😀",
] * 3


def make_tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys([pad, "</s>"]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token=pad)


def make_model(family: str, tokenizer: PreTrainedTokenizerFast, positions: int = 96, seed: int = 0) -> torch.nn.Module:
    common = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    configs = {
        "gpt2": GPT2Config(n_positions=positions, n_embd=32, n_layer=2, n_head=4, **common),
        "gpt_neo": GPTNeoConfig(
            max_position_embeddings=positions,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            window_size=8,
            attention_types=[[["global", "local"], 1]],
            **common,
        ),
        "llama": LlamaConfig(
            max_position_embeddings=positions,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **common,
        ),
        "t5": T5Config(
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id,
            **common,
        ),
    }
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    model = auto.from_config(configs[family]).eval()
    for parameter in model.parameters():  # random defaults repeat one token; larger weights make lively output
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    return model


def make_generator(family: str, pad: str = "<pad>", **kwargs: object) -> TransformersGenerator:
    tokenizer = make_tokenizer(pad)
    return TransformersGenerator(make_model(family, tokenizer), tokenizer, seq2seq=family == "t5", **kwargs)


@pytest.fixture(scope="session", params=["gpt2", "gpt_neo", "llama", "t5"])
def generator(request: pytest.FixtureRequest) -> TransformersGenerator:
    return make_generator(request.param)


@pytest.fixture(scope="session")
def causal() -> TransformersGenerator:
    return make_generator("gpt2")


@pytest.fixture(scope="session")
def seq2seq() -> TransformersGenerator:
    return make_generator("t5")


def make_engine_generator(theirs: TransformersGenerator, options: EngineOptions | None = None) -> EngineGenerator:
    """Over the very model that the oracle drives."""
    engine = open_engine(theirs.model, options or EngineOptions())
    vocab_size = engine.runner.vocab_size
    resolver = Resolver(theirs.tokenizer, theirs.model.generation_config, theirs.window, vocab_size)
    return EngineGenerator(EngineService(engine), resolver, Addressing())
