"""The engine benchmark's models and requests: token ids from fixed seeds, the same for every side.

Requests have prompts of 10-120 tokens and answers of 8-128, spread evenly over these lengths, in random order. SmolLM2
reads pieces of a novel, so that the tokens it chooses mean something; T5 and GPT-Neo have random weights and read
random tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import DATA, SMOLLM2
from peers.protocol import Request
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPTNeoConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from rayloom.artifacts import cache_root, publish_folder
from rayloom.config import ModelConfig
from rayloom.models import resolve_source

PROMPT_LENGTHS, ANSWER_LENGTHS = (10, 120), (8, 128)
SHORT_ANSWER = 32
"""Longest answer that counts as short: a fifth of the requests, those that static batches make wait most."""


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        name: For people.
        folder: transformers model and tokenizer.
        seq2seq: Whether it has an encoder.
        vocab_size: Token ids.
    """

    name: str
    folder: Path
    seq2seq: bool
    vocab_size: int


def smollm2() -> Model:
    """SmolLM2-135M-Instruct, from an installed package."""
    folder = resolve_source(ModelConfig(**SMOLLM2["model"])).model_folder()
    return _model("SmolLM2-135M", folder)


def t5() -> Model:
    """The sizes of t5-small, random weights."""
    config = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128)
    config.decoder_start_token_id = config.pad_token_id
    return _model("t5-small's sizes (random)", _random("t5-small", config))


def gpt_neo() -> Model:
    """The sizes of GPT-Neo-125M, random weights."""
    config = GPTNeoConfig(
        hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]], vocab_size=50257
    )
    return _model("GPT-Neo-125M's sizes (random)", _random("gpt-neo-125m", config))


def mix(model: Model, count: int, *, seed: int = 0) -> list[Request]:
    """Requests of mixed lengths.

    Args:
        model: That reads them.
        count: How many.
        seed: Of lengths and prompts.
    """
    rng = random.Random(seed)
    prompts = _prompts(model, _spread(PROMPT_LENGTHS, count, rng), rng)
    answers = _spread(ANSWER_LENGTHS, count, rng)
    return [Request(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def even(model: Model, count: int, *, new_tokens: int, num_beams: int = 1, seed: int = 1) -> list[Request]:
    """Requests with prompts of mixed lengths and answers of one length: a batch that stays full to its end."""
    rng = random.Random(seed)
    prompts = _prompts(model, _spread(PROMPT_LENGTHS, count, rng), rng)
    return [Request(prompt, new_tokens, num_beams) for prompt in prompts]


def sample(requests: Sequence[Request], count: int) -> list[int]:
    """Places of some requests whose answers are about as long as all of them: every n-th by length.

    Args:
        requests: All.
        count: How many; divides their number or is more.
    """
    order = sorted(range(len(requests)), key=lambda place: requests[place].new_tokens)
    step = max(1, len(order) // count)
    return sorted(order[step // 2 :: step][:count])


def _spread(bounds: tuple[int, int], count: int, rng: random.Random) -> list[int]:
    """Lengths at equal distances from the least to the most, shuffled."""
    low, high = bounds
    lengths = [low + round(place * (high - low) / max(1, count - 1)) for place in range(count)]
    rng.shuffle(lengths)
    return lengths


def _prompts(model: Model, lengths: Sequence[int], rng: random.Random) -> list[list[int]]:
    if model.name.startswith("SmolLM2"):
        text = (DATA / "austen" / "train.txt").read_text(encoding="utf-8")[:200_000]
        ids = AutoTokenizer.from_pretrained(model.folder)(text)["input_ids"]
        starts = [rng.randrange(len(ids) - length) for length in lengths]
        return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    end = [1] if model.seq2seq else []
    return [[rng.randrange(3, model.vocab_size) for _ in range(length - len(end))] + end for length in lengths]


def _model(name: str, folder: Path) -> Model:
    config = AutoConfig.from_pretrained(folder)
    return Model(name, folder, bool(config.is_encoder_decoder), int(config.vocab_size))


def _random(name: str, config: Any) -> Path:
    """A model of random weights with a tokenizer of made-up words: peers that convert models ask for one."""

    def build(folder: Path) -> None:
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=torch.float32)
        if config.is_encoder_decoder:
            _unsettle(model)
        model.save_pretrained(folder)
        words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{place}": place for place in range(3, config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder)

    return publish_folder(cache_root() / "models" / f"bench-{name}-{torch.__version__}", build)


@torch.no_grad()
def _unsettle(model: Any) -> None:
    """Give a random T5 answers that change from token to token.

    Its head is its embedding. As initialised, the last token's own embedding outweighs all that the layers compute,
    and it repeats one token for ever; these factors were found by trying.
    """
    model.shared.weight.mul_(0.1)
    for block in model.decoder.block:
        block.layer[0].SelfAttention.q.weight.mul_(5)
        block.layer[1].EncDecAttention.q.weight.mul_(5)
        block.layer[2].DenseReluDense.wo.weight.mul_(10)
