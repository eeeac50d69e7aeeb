"""Typed fakes and tiny real models that several rooms' tests share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rayloom.config import RunConfig, validate
from rayloom.data import IGNORED, EncodedDataset, Example
from rayloom.training import Backend, EvalRecord, Part, Progress, StepRecord

VOCABULARY = 64
FAMILIES = ("t5", "gpt_neo", "llama")


@dataclass
class KeptReports:
    """A `Reporter` that keeps everything, checkpoints too."""

    folder: Path
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)
    checkpoints: dict[int, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def keep_file(self, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, self.folder)

    def stepped(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluated(self, record: EvalRecord) -> None:
        self.evaluations.append(record)

    def checkpoint(self, part: Part, progress: Progress, metrics: dict[str, float]) -> None:
        kept = self.folder / f"step-{progress.step}"
        shutil.copytree(part.folder, kept, dirs_exist_ok=True)
        part.finish(kept)
        self.checkpoints[progress.step] = kept


def trained_weights(backend: Backend) -> dict[str, torch.Tensor]:
    """A copy of the weights that a backend has trained, by name."""
    named = backend.module.model.named_parameters()
    return {name: p.detach().float().clone() for name, p in named if p.requires_grad}


def tiny_model(family: str, *, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """A real architecture with a few thousand random weights."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    if family == "t5":
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=dropout,
            decoder_start_token_id=0,
            **ids,
        )
        return T5ForConditionalGeneration(config)
    if family == "gpt_neo":
        config = GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            intermediate_size=64,
            window_size=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            resid_dropout=dropout,
            embed_dropout=dropout,
            attention_dropout=dropout,
            **ids,
        )
        return GPTNeoForCausalLM(config)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        attention_dropout=dropout,
        **ids,
    )
    return LlamaForCausalLM(config)


def random_examples(count: int, *, seq2seq: bool, seed: int = 0) -> EncodedDataset:
    """Rows of random ids and lengths; causal ones start with a prompt that is no target."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        prompt = rng.integers(2, VOCABULARY, int(rng.integers(1, 12))).tolist()
        target = [*rng.integers(2, VOCABULARY, int(rng.integers(1, 8))).tolist(), 1]
        if seq2seq:
            examples.append(Example([*prompt, 1], target))
        else:
            examples.append(Example([*prompt, *target], [*[IGNORED] * len(prompt), *target]))
    return EncodedDataset.from_examples(examples, seq2seq=seq2seq)


def run_config(**sections: dict[str, object]) -> RunConfig:
    """A small valid run config with some sections changed."""
    values: dict[str, object] = {
        "model": {"name": "tiny", "task_type": "question-answering"},
        "dataset": {"train_file": "train.jsonl"},
    }
    return validate(RunConfig, values | sections)
