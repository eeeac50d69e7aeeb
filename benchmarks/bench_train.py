"""Training against transformers.Trainer, and what checkpoints, more workers and DeepSpeed cost or bring.

Everything is bf16, on one thread of a CPU per process. In a round all sides have a turn, in every other round
backwards; a ratio compares two sides within a round, and its median over the rounds counts.

Tables (--table, several may be named; all by default):

* trainer: real tokens per second (prompts and answers, no padding) of `rayloom.training.train` with packing against
  transformers.Trainer, on question-answer rows: with batches of its group_by_length, padded to their longest row, and
  with its default recipe, every row padded to 512. The steps are a sample of those that each side would make of all
  4,000 rows, spread evenly over their lengths; padded steps are all alike, so one of them is a turn. Then on text in
  full blocks of 512 tokens, where there is nothing to save.
* zero1: DeepSpeed at ZeRO 1 against the plain backend, in one process.
* compile: layers compiled (training.compile) against layers as they are; compiling itself does not count.
* workers: one worker and two over the same rows, each with as many a step, through Ray Train; beside them processes
  that exchange nothing, which is the most that the machine has to give.
* checkpoint: `rayloom train` with GPT-Neo: by how much a save lengthens the steps after it, told for one save
  per 100 steps; then the run is killed, and `rayloom train --resume` is timed until its first step is done.

Models: SmolLM2-135M with LoRA, and a random GPT-Neo of 30 M parameters with GPT-Neo's own vocabulary size.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
from measure import print_machine
from rich.console import Console
from train_runs import checkpoint_table, workers_table
from train_tables import compile_table, trainer_table, zero_table
from train_work import MODELS

from rayloom.launch.heap import heap_environment
from rayloom.training import keep_freed_memory

TABLES = {
    "trainer": trainer_table,
    "zero1": zero_table,
    "compile": compile_table,
    "workers": workers_table,
    "checkpoint": checkpoint_table,
}


def main() -> None:
    options = parse()
    start_with(heap_environment())
    # Processes that are started inherit these; DeepSpeed would look for an accelerator, and say so.
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("RAY_ADDRESS", None)  # all sides belong on this machine
    torch.set_num_threads(1)
    keep_freed_memory()  # this and the allocator as in Rayloom's workers: here they help transformers.Trainer as much
    console = Console(soft_wrap=True, width=110)
    print_machine(console, threads=1)
    for name in options.table:
        console.rule(name)
        TABLES[name](console, options)


def start_with(environment: dict[str, str]) -> None:
    """Begin this process anew with what is read only when one starts."""
    if environment.items() - os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", nargs="+", choices=list(TABLES), default=list(TABLES), help="which tables (default: all)")
    add(
        "--model",
        nargs="+",
        choices=list(MODELS),
        default=list(MODELS),
        help="of trainer, zero1 and compile (default: all)",
    )
    add("--rounds", type=int, default=3, help="turns of each side (default 3)")
    add("--steps", type=int, default=8, help="steps of a turn on question-answer rows (default 8)")
    add("--rows-per-step", type=int, default=8, help="rows of a step, per worker (default 8)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
