"""What Ray Train and DeepSpeed add to a training step, on one CPU worker.

Three sides run the same loop (`rayloom.training.train`) over the same batches, in turn, for several rounds:

* bare, plain PyTorch: a fresh process without Ray;
* bare, DeepSpeed: the same with DeepSpeed at the chosen ZeRO stage;
* Ray Train + DeepSpeed: `rayloom.launch`'s own worker, in a local Ray that is started for the round and
  stopped after it.

A step lasts from one record to the next (logging_steps is 1), so reporting is in it; the first steps of
every run are left out. A ratio compares two sides within a round, where the machine is most alike; its
median over the rounds counts. The sides must show equal losses, or they did not do the same work.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ray
import torch
from measure import DATA, SMOLLM2, print_machine, print_model, print_verdict
from ray.train import RunConfig as RayRunConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console
from rich.table import Column, Table

from rayloom.config import RunConfig, validate
from rayloom.data import EncodedDataset
from rayloom.launch import Prepared, prepare, ray_session
from rayloom.launch.entry import train_worker
from rayloom.launch.heap import heap_environment
from rayloom.launch.progress import Event, watched
from rayloom.launch.shipping import pack
from rayloom.launch.worker import Payload, build_backend
from rayloom.models import ModelSource
from rayloom.training import EvalRecord, Job, Part, Progress, StepRecord, keep_freed_memory, train

TARGET = 1.05
PLAIN, DEEPSPEED, RAY = "bare, plain PyTorch", "bare, DeepSpeed", "Ray Train + DeepSpeed"
SIDES = (PLAIN, DEEPSPEED, RAY)
GPT_NEO: dict[str, Any] = {
    "model": {
        "name": "gpt-neo-random",
        "task_type": "language-modeling",
        "random_init": {
            "family": "gpt_neo",
            "hidden_size": 512,
            "num_layers": 6,
            "num_heads": 8,
            "max_positions": 256,
            "vocab_size": 4000,
        },
    },
    "dataset": {"train_file": str(DATA / "austen" / "train.txt"), "max_input_length": 128},
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_neo": GPT_NEO,
    "smollm2": SMOLLM2
    | {
        "dataset": {
            "train_file": str(DATA / "wordnet_entities" / "train.jsonl"),
            "max_input_length": 128,
            "max_target_length": 64,
            "max_train_rows": 400,
        }
    },
}


@dataclass
class Records:
    """A reporter, and a sink, that keeps the steps of one run."""

    steps: list[StepRecord] = field(default_factory=list)

    def stepped(self, record: StepRecord) -> None:
        """See `Reporter.stepped`."""
        self.steps.append(record)

    def evaluated(self, record: EvalRecord) -> None:
        """See `Reporter.evaluated`."""

    def note(self, text: str) -> None:
        """See `Reporter.note`."""

    def keep_file(self, path: Path) -> None:
        """See `Reporter.keep_file`."""

    def checkpoint(self, part: Part, progress: Progress, metrics: dict[str, float]) -> None:
        """See `Reporter.checkpoint`."""

    def __call__(self, event: Event) -> None:
        """See `Sink`."""
        if isinstance(event, StepRecord):
            self.steps.append(event)

    def seconds(self, *, warmup: int) -> list[float]:
        """Seconds of each step after the first ones; the last one has no time left to tell them by."""
        return [s.eta_s / (s.total_steps - s.step) for s in self.steps[warmup:] if s.step < s.total_steps]


def main() -> None:
    options = parse()
    # All processes of all sides inherit these; otherwise DeepSpeed looks for an accelerator, and says so.
    os.environ |= heap_environment() | {"OMP_NUM_THREADS": str(options.threads), "DS_ACCELERATOR": "cpu"}
    os.environ.pop("RAY_ADDRESS", None)  # both sides belong on this machine
    console = Console(soft_wrap=True)
    print_machine(console, threads=options.threads)
    configs = {side: config_of(options, side) for side in SIDES}
    prepared = prepare(configs[RAY])
    print_model(console, prepared)
    console.print(
        f"{options.rounds} rounds of {options.warmup} + {options.steps} steps on each side, "
        f"{options.batch_size} rows a step, ZeRO stage {options.zero_stage}\n",
        highlight=False,
    )
    rounds: list[dict[str, Records]] = []
    for number in range(options.rounds):
        order = SIDES[number % 3 :] + SIDES[: number % 3]
        rounds.append({side: measure(console, side, configs[side], prepared, number) for side in order})
    show(console, rounds, warmup=options.warmup)


def measure(console: Console, side: str, config: RunConfig, prepared: Prepared, number: int) -> Records:
    """One run of one side."""
    start = time.perf_counter()
    records = run_in_ray(config, prepared) if side == RAY else run_bare(config, prepared)
    console.print(f"round {number + 1}, {side}: {time.perf_counter() - start:.0f} s with start-up", style="dim")
    return records


def run_in_ray(config: RunConfig, prepared: Prepared) -> Records:
    """A Ray Train run as `rayloom train` starts it, without evaluation and artifact."""
    records = Records()
    with (
        ray_session(config.distributed),
        watched(records) as board,
        tempfile.TemporaryDirectory(prefix="rayloom-bench-") as storage,
    ):
        payload = Payload(
            config=config,
            source=prepared.source,
            template=prepared.template,
            columns=prepared.columns,
            model_files=ray.put(pack(prepared.source)),
            train=ray.put(prepared.train),
            validation=ray.put(no_rows(prepared.train)),
            eval_rows=[],
            board=board,
            place=storage,
            identity={},
        )
        cpus = {"CPU": config.distributed.cpus_per_worker}
        TorchTrainer(
            train_worker,
            train_loop_config={"payload": ray.put(payload)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.distributed.num_workers, use_gpu=False, resources_per_worker=cpus
            ),
            run_config=RayRunConfig(
                name="overhead", storage_path=storage, worker_runtime_env={"env_vars": heap_environment()}
            ),
        ).fit()
    return records


def run_bare(config: RunConfig, prepared: Prepared) -> Records:
    """The same loop in a fresh process, without a Ray."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(bare_worker, config, prepared.source, prepared.train).result()


def bare_worker(config: RunConfig, source: ModelSource, rows: EncodedDataset) -> Records:
    """What `train_worker` does, less Ray."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # DeepSpeed makes a process group of one, as Ray Train does.
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(int(config.distributed.cpus_per_worker))
    keep_freed_memory()
    backend, tokenizer = build_backend(config, source, torch.device("cpu"), longest=int(rows.lengths.max()))
    records = Records()
    train(Job(config, rows, no_rows(rows), tokenizer.pad_token_id), backend, records)
    return records


def no_rows(like: EncodedDataset) -> EncodedDataset:
    """Validation that costs nothing."""
    return EncodedDataset.from_examples([], seq2seq=like.seq2seq)


def show(console: Console, rounds: list[dict[str, Records]], *, warmup: int) -> None:
    """The table, the ratios, and whether all sides did the same work."""
    table = Table(Column("side", no_wrap=True), "median s/step", "best round", "worst round", "last loss")
    for side in SIDES:
        medians = [median_step(one, side, warmup) for one in rounds]
        steps = [second for one in rounds for second in one[side].seconds(warmup=warmup)]
        cells = (statistics.median(steps), min(medians), max(medians))
        table.add_row(side, *(f"{cell:.4f}" for cell in cells), f"{rounds[-1][side].steps[-1].loss:.5f}")
    console.print()
    console.print(table)
    show_ratio(console, rounds, RAY, PLAIN, warmup=warmup)
    show_ratio(console, rounds, RAY, DEEPSPEED, warmup=warmup)
    show_ratio(console, rounds, DEEPSPEED, PLAIN, warmup=warmup)
    losses = [[step.loss for step in one[side].steps] for one in rounds for side in SIDES]
    apart = max(max(values) - min(values) for values in zip(*losses, strict=True))
    console.print(f"losses of the sides differ by at most {apart:.1g} at any step", highlight=False)


def show_ratio(console: Console, rounds: list[dict[str, Records]], side: str, base: str, *, warmup: int) -> None:
    """The median over rounds of one ratio, with its spread; judged where Ray Train is in it."""
    ratios = [median_step(one, side, warmup) / median_step(one, base, warmup) for one in rounds]
    ratio = statistics.median(ratios)
    label, text = f"({side}) / ({base})", f"{ratio:.3f} x ({min(ratios):.3f} to {max(ratios):.3f})"
    if side == RAY:
        print_verdict(console, label, text, f"≤ {TARGET} x", met=ratio <= TARGET)
    else:
        console.print(f"{label}: {text}", highlight=False)


def median_step(one: dict[str, Records], side: str, warmup: int) -> float:
    return statistics.median(one[side].seconds(warmup=warmup))


def config_of(options: argparse.Namespace, side: str) -> RunConfig:
    """The run of a side; the sides differ in the backend only."""
    backend = {"backend": "plain"} if side == PLAIN else {"zero_stage": options.zero_stage}
    more = {
        "training": {
            "batch_size": options.batch_size,
            "max_steps": options.warmup + options.steps + 1,
            "num_epochs": 100,
            "learning_rate": 1e-4,
            "bf16": options.bf16,
            "logging_steps": 1,
            "eval_rows": 0,
            # Also without evaluations, an epoch's end would write a checkpoint.
            "eval_every_epochs": 100,
        },
        "distributed": {
            "num_workers": 1,
            "use_gpu": False,
            "cpus_per_worker": options.threads,
            "max_failures": 0,
        }
        | backend,
    }
    return validate(RunConfig, MODELS[options.model] | more)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        choices=sorted(MODELS),
        default="gpt_neo",
        help="gpt_neo: random weights, all trained, blocks of 128 tokens of Pride and Prejudice (default); "
        "smollm2: SmolLM2-135M + LoRA on wordnet_entities",
    )
    add(
        "--rounds",
        type=int,
        default=3,
        help="runs of each side, in turn; with 3 each side is first, second and third once (default 3)",
    )
    add("--steps", type=int, default=12, help="measured steps of a run (default 12)")
    add("--warmup", type=int, default=3, help="steps before them that are left out (default 3)")
    add(
        "--batch-size",
        type=int,
        default=8,
        help="rows of a step (default 8, as in a config); a fixed cost per step weighs more the fewer they are",
    )
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), default=0, help="of both DeepSpeed sides (default 0)")
    add("--threads", type=int, default=1, help="compute threads, and Ray's cpus_per_worker (default 1)")
    add(
        "--bf16",
        action="store_true",
        help="bfloat16: autocast on the plain side, bf16 weights in DeepSpeed, so not quite the same work",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
