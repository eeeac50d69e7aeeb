"""What the training benchmark trains: models, rows, and the batches that each side would make of all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from measure import DATA, SMOLLM2
from transformers.trainer_pt_utils import LengthGroupedSampler

from rayloom.config import RunConfig, validate
from rayloom.data import EncodedDataset, GlobalBatch
from rayloom.launch import Prepared, prepare
from rayloom.training import Job

CPU = torch.device("cpu")
BLOCK = 512
"""Tokens of a long block, and of a row that is padded to the maximum."""
_VOCABULARY = 50257
_SEED = 0
T = TypeVar("T")

GPT_NEO: dict[str, Any] = {
    "model": {
        "name": "gpt-neo-30M-random",
        "random_init": {
            "family": "gpt_neo",
            "hidden_size": 384,
            "num_layers": 6,
            "num_heads": 6,
            "max_positions": BLOCK,
            "vocab_size": 8000,
            # GPT-Neo's own: with the small tokenizer's, the head would be a fifth of what it is in life.
            "options": {"vocab_size": _VOCABULARY},
        },
    }
}
MODELS: dict[str, dict[str, Any]] = {"gpt_neo": GPT_NEO, "smollm2": SMOLLM2}
ANSWERS: dict[str, Any] = {
    "train_file": str(DATA / "wordnet_entities" / "train.jsonl"),
    "max_input_length": 128,
    "max_target_length": 64,
}
TEXT: dict[str, Any] = {"train_file": str(DATA / "austen" / "train.txt"), "max_input_length": BLOCK}


@dataclass(frozen=True)
class Work:
    """A run, and a sample of the batches of one pass over its rows.

    Args:
        prepared: The run.
        planned: Steps of Rayloom's plan.
        grouped: Rows of steps that transformers' LengthGroupedSampler makes.
        shuffled: Rows of steps in random order.
    """

    prepared: Prepared
    planned: tuple[GlobalBatch, ...]
    grouped: tuple[Sequence[int], ...]
    shuffled: tuple[Sequence[int], ...]


def config_of(model: str, dataset: dict[str, Any], *, batch_size: int, **sections: dict[str, Any]) -> RunConfig:
    """One pass over the rows of a file, bf16, one worker.

    Args:
        model: Of `MODELS`.
        dataset: `ANSWERS` or `TEXT`.
        batch_size: Rows of a step.
        sections: Changes to training and distributed.
    """
    chosen = MODELS[model]
    task = "language-modeling" if dataset is TEXT else "question-answering"
    training = {
        "batch_size": batch_size,
        "bf16": True,
        "packing": True,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "eval_rows": 0,
    }
    values = {
        "model": chosen["model"] | {"task_type": task},
        "dataset": dataset,
        "training": training | sections.get("training", {}),
        "distributed": {"num_workers": 1, "use_gpu": False, "max_failures": 0} | sections.get("distributed", {}),
        "output": sections.get("output", {}),
    }
    return validate(RunConfig, values | ({"lora": chosen["lora"]} if "lora" in chosen else {}))


def answers(model: str, *, batch_size: int, steps: int) -> Work:
    """Question-answer rows; each side's batches are sampled evenly over their lengths."""
    prepared = prepare(config_of(model, ANSWERS, batch_size=batch_size))
    data = prepared.train
    lengths = data.lengths.tolist()
    torch.manual_seed(_SEED)  # the sampler's
    grouped = cut(list(LengthGroupedSampler(batch_size, lengths=lengths)), batch_size)
    plan = Job(prepared.config, data, prepared.validation, prepared.tokenizer.pad_token_id).plan(0)

    def planned_tokens(batch: GlobalBatch) -> int:
        return sum(lengths[row] for micro in batch.micro[0] for row in micro.rows)

    return Work(
        prepared,
        sampled(plan[: len(data) // batch_size], planned_tokens, steps),
        sampled(grouped, lambda rows: sum(lengths[row] for row in rows), steps),
        tuple(cut(np.random.default_rng(_SEED).permutation(len(data)).tolist(), batch_size)[:steps]),
    )


def blocks(model: str, *, batch_size: int, steps: int) -> Work:
    """Text in blocks of full length: nobody pads, and both sides take the same ones."""
    prepared = prepare(config_of(model, TEXT, batch_size=batch_size))
    data = prepared.train
    full = [place for place, length in enumerate(data.lengths.tolist()) if length == BLOCK][: batch_size * steps]
    if len(full) < batch_size * steps:
        raise SystemExit(f"the text has {len(full)} blocks only: ask for fewer steps or rows")
    part = EncodedDataset.from_examples([data[place] for place in full], seq2seq=False)
    prepared = replace(prepared, train=part)
    plan = Job(prepared.config, part, prepared.validation, prepared.tokenizer.pad_token_id).plan(0)
    rows = tuple(batch.micro[0][0].rows for batch in plan)
    return Work(prepared, tuple(plan), rows, rows)


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Batches of a size; a rest is left out."""
    return [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]


def sampled(batches: Sequence[T], tokens: Callable[[T], int], count: int) -> tuple[T, ...]:
    """Some batches that stand for all: evenly spaced by their tokens, in random order."""
    ranked = sorted(batches, key=tokens)
    if len(ranked) < count:
        raise SystemExit(f"there are {len(ranked)} batches only: ask for fewer steps or rows")
    chosen = [ranked[int((place + 0.5) * len(ranked) / count)] for place in range(count)]
    return tuple(chosen[place] for place in np.random.default_rng(_SEED).permutation(count))
