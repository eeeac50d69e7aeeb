"""Real tokens per second: Rayloom's batches against rows padded to a fixed length.

Both sides train the same model with the same backend (plain PyTorch) on the same short question-answer
rows, with equally many rows per optimizer step:

* Rayloom: `plan_epoch` puts rows of like length together, `collate` pads to the longest of a batch;
* Rayloom, packed: the same plan, but rows share sequences of --packing-length tokens (`training.packing`);
* padded, as tutorials do it: rows shuffled, every input padded to --max-length tokens, and every target of
  an encoder-decoder to --max-target-length; the loss looks at every position.

The sides take turns. In a round, Rayloom's sides train one pass over all rows each, the padded side its next
--steps steps; over all rounds it comes to every row once. The padded steps all have one shape, so a padded
pass is priced by their median; Rayloom's passes by the median pass. Real tokens are those of prompts and
targets, without padding.

Long runs gain a little more: plans sort rows within 50 batches, and by default there are fewer here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from measure import DATA, SMOLLM2, print_machine, print_model, print_verdict
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from torch.nn.functional import pad

from rayloom.config import RunConfig, validate
from rayloom.data import IGNORED, EncodedDataset, MicroBatch, Packing, collate, plan_epoch
from rayloom.launch import prepare
from rayloom.launch.worker import build_backend
from rayloom.training import Backend
from rayloom.training.batches import to_device

TARGET = 8.0
CPU = torch.device("cpu")
T5: dict[str, Any] = {
    "model": {
        "name": "t5-random",
        "random_init": {
            "family": "t5",
            "hidden_size": 512,
            "num_layers": 6,
            "num_heads": 8,
            "vocab_size": 8000,
        },
    }
}
MODELS = {"t5": T5, "smollm2": SMOLLM2}
STEPS = {"t5": 3, "smollm2": 2}
ROWS_PER_STEP = {"t5": 8, "smollm2": 4}

Rows = Sequence[int]
Batch = dict[str, Tensor]
"""Tensors, and the first position with a target (see `TokenLoss.forward`)."""


@dataclass(frozen=True)
class Batches:
    """The rows, and how each side makes a batch of some of them.

    Args:
        dataset: Encoded rows.
        pad_token_id: Fills up rows.
        max_length: Input tokens of a padded row.
        max_target_length: Target tokens of a padded row of an encoder-decoder.
        packing: How the packed side lays out rows.
    """

    dataset: EncodedDataset
    pad_token_id: int
    max_length: int
    max_target_length: int
    packing: Packing

    def rayloom(self, rows: Rows) -> Batch:
        """As the training loop does."""
        return to_device(self.dataset, MicroBatch(tuple(rows)), pad_token_id=self.pad_token_id, device=CPU)

    def packed(self, rows: Rows) -> Batch:
        """As the training loop does with `training.packing`."""
        micro = MicroBatch(tuple(rows))
        return to_device(self.dataset, micro, pad_token_id=self.pad_token_id, device=CPU, packing=self.packing)

    def padded(self, rows: Rows) -> Batch:
        """As a tokenizer with ``padding="max_length"`` does."""
        seq2seq = self.dataset.seq2seq
        batch = collate([self.dataset[row] for row in rows], pad_token_id=self.pad_token_id, seq2seq=seq2seq)
        widths = {
            "input_ids": (self.max_length, self.pad_token_id),
            "attention_mask": (self.max_length, 0),
            "labels": (self.max_target_length if seq2seq else self.max_length, IGNORED),
        }
        wide = {name: widened(batch[name], *width) for name, width in widths.items()}
        # Logits at every position, as the models' own loss computes them (its last one has no next token).
        every = torch.arange(wide["labels"].numel() - (0 if seq2seq else 1))
        return wide | {"positions": every}


@dataclass
class Side:
    """One way of making batches, with a model of its own that they train.

    Args:
        name: For people.
        backend: Its model.
        make: Rows to tensors.
        target_counts: Target tokens of every row.
        shape: Of the last batch.
    """

    name: str
    backend: Backend
    make: Callable[[Rows], Batch]
    target_counts: np.ndarray[Any, Any]
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def step(self, rows: Rows) -> float:
        """Seconds of one optimizer step, making the batch included."""
        start = time.perf_counter()
        tensors = self.make(rows)
        scale = 1.0 / float(self.target_counts[list(rows)].sum())
        self.backend.backward(tensors, scale=scale, is_last=True)
        self.backend.update(1e-4)
        return time.perf_counter() - start

    def loss(self, rows: Rows) -> float:
        """Mean loss per target token."""
        return float(self.backend.loss(self.make(rows))) / float(self.target_counts[list(rows)].sum())


def main() -> None:
    options = parse()
    os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed looks for one, and says so
    torch.set_num_threads(options.threads)
    console = Console(soft_wrap=True)
    print_machine(console, threads=options.threads)
    config = config_of(options)
    prepared = prepare(config)
    print_model(console, prepared)
    data, size = prepared.train, options.rows_per_step
    if len(data) != options.rounds * options.steps * size:
        raise SystemExit(f"the file has {len(data)} train rows only: ask for fewer rounds, steps or rows")
    packing = Packing(options.packing_length)
    batches = Batches(data, prepared.tokenizer.pad_token_id, options.max_length, options.max_target_length, packing)
    longest = int(data.lengths.max())
    name = f"packed to {options.packing_length or 'the longest'}"

    def side(name: str, make: Callable[[Rows], Batch], tokens: int) -> Side:
        return Side(name, build_backend(config, prepared.source, CPU, longest=tokens)[0], make, data.target_counts)

    ours = [
        side("Rayloom's plan", batches.rayloom, longest),
        side(name, batches.packed, max(longest, options.packing_length or 0)),
    ]
    padded = side(f"padded to {options.max_length}", batches.padded, options.max_length)

    plan = planned(data, size)
    shuffled = np.random.default_rng(0).permutation(len(data)).reshape(-1, size).tolist()
    console.print(
        f"{options.rounds} rounds; {size} rows a step; a pass over all rows takes {len(plan)} steps\n",
        highlight=False,
    )
    losses = [one.loss(plan[0]) for one in (*ours, padded)]
    for one in ours:
        for rows in (plan[0], plan[-1]):
            one.step(rows)
    padded.step(shuffled[0])
    passes, steps = take_turns(ours, plan, padded, shuffled, options.rounds)
    passes[padded.name] = [second * len(plan) for second in steps]
    show(console, data, passes)
    for one in (*ours, padded):
        computed = sum(batch["input_ids"].numel() for batch in map(one.make, plan))
        console.print(f"{one.name}: {len(data.input_ids) / computed:.0%} of the input positions are tokens")
    before = f"{losses[0]:.5f}, packed {losses[1]:.5f}, padded {losses[2]:.5f}"
    console.print(f"loss of the same {size} rows before training: {before}", highlight=False)


def planned(data: EncodedDataset, size: int) -> list[Rows]:
    """The steps of an epoch as the training loop would take them."""
    plan = plan_epoch(
        data.lengths, data.target_counts, global_batch_size=size, batch_size=size, world_size=1, seed=0, epoch=0
    )
    return [batch.micro[0][0].rows for batch in plan]


def take_turns(
    ours: Sequence[Side], plan: Sequence[Rows], padded: Side, shuffled: Sequence[Rows], rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of the passes of Rayloom's sides and of the padded side's steps; who begins alternates."""
    passes: dict[str, list[float]] = {side.name: [] for side in ours}
    steps: list[float] = []
    share = len(shuffled) // rounds
    for number in range(rounds):
        part = shuffled[number * share : (number + 1) * share]
        if number % 2:
            steps += [padded.step(rows) for rows in part]
        for side in ours[:: -1 if number % 2 else 1]:
            passes[side.name].append(sum(side.step(rows) for rows in plan))
        if not number % 2:
            steps += [padded.step(rows) for rows in part]
    return passes, steps


def show(console: Console, data: EncodedDataset, passes: dict[str, list[float]]) -> None:
    """The table and the ratios of all sides to the last.

    Args:
        console: Where to.
        data: The rows.
        passes: By side, measured seconds of a pass over all rows.
    """
    tokens = data.num_tokens
    table = Table(Column("side", no_wrap=True), "median s/pass", "fastest", "slowest", "real tokens/s")
    for name, seconds in passes.items():
        middle = statistics.median(seconds)
        cells = (f"{value:.2f}" for value in (middle, min(seconds), max(seconds)))
        table.add_row(name, *cells, f"{tokens / middle:.1f}")
    console.print(table)
    *ours, theirs = (statistics.median(seconds) for seconds in passes.values())
    for name, seconds in zip(passes, ours, strict=False):
        label = f"{name}: real tokens per second on {len(data)} rows of {tokens / len(data):.0f} real tokens"
        ratio = theirs / seconds
        print_verdict(console, label, f"{ratio:.2f} x", f"≥ {TARGET:g} x", met=ratio >= TARGET)


def widened(tensor_BT: Tensor, width: int, value: int) -> Tensor:
    """Padded on the right to a width."""
    if tensor_BT.shape[1] > width:
        raise SystemExit(f"a row has {tensor_BT.shape[1]} tokens: ask for a larger --max-length or --max-target-length")
    return pad(tensor_BT, (0, width - tensor_BT.shape[1]), value=value)


def config_of(options: argparse.Namespace) -> RunConfig:
    """The run that both sides are."""
    return validate(
        RunConfig,
        MODELS[options.model]
        | {
            "dataset": {
                "train_file": str(DATA / "wordnet_entities" / "train.jsonl"),
                "max_input_length": options.max_length,
                "max_target_length": options.max_target_length,
                "max_train_rows": options.rounds * options.steps * options.rows_per_step,
            },
            "training": {"batch_size": options.rows_per_step, "bf16": options.bf16},
        },
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        choices=sorted(MODELS),
        default="t5",
        help="t5: the size of t5-small, random weights, all trained (default); smollm2: SmolLM2-135M + LoRA",
    )
    add("--rounds", type=int, default=2, help="turns of each side (default 2)")
    add("--steps", type=int, help=f"padded steps in a round (default: {STEPS})")
    add("--rows-per-step", type=int, help=f"rows of an optimizer step (default: {ROWS_PER_STEP})")
    add("--max-length", type=int, default=512, help="the padded side's input tokens (default 512)")
    add("--max-target-length", type=int, default=128, help="its target tokens, for t5 (default 128)")
    add("--packing-length", type=int, help="tokens of the packed side's sequences (default: the batch's longest row)")
    add("--threads", type=int, default=1, help="compute threads; a CPU worker has 1 by default (default 1)")
    add("--bf16", action="store_true", help="bfloat16 autocast on both sides")
    options = parser.parse_args()
    options.steps = options.steps or STEPS[options.model]
    options.rows_per_step = options.rows_per_step or ROWS_PER_STEP[options.model]
    return options


if __name__ == "__main__":
    main()
