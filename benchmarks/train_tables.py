"""The training benchmark's tables that stay in this process. See `bench_train.py`."""

from __future__ import annotations

import argparse
import os
import socket
import statistics
from collections.abc import Sequence
from dataclasses import replace

from measure import print_model, print_verdict
from rich.console import Console
from rich.table import Column, Table
from train_sides import Side, Turn, rayloom_side, trainer_side
from train_work import ANSWERS, BLOCK, CPU, Work, answers, blocks, config_of

from rayloom.config import RunConfig
from rayloom.launch.worker import build_backend

Options = argparse.Namespace
Turns = dict[str, list[Turn]]

GROUPED_TARGET, PADDED_TARGET, BLOCK_TARGET, ZERO_TARGET, COMPILED_TARGET = 1.5, 5.0, 1.0, 0.9, 1.0
OURS, GROUPED, PADDED = "Rayloom, packed", "Trainer, group_by_length", f"Trainer, padded to {BLOCK}"
PLAIN, ZERO = "plain PyTorch", "DeepSpeed, ZeRO 1"
AS_IS, COMPILED = "layers as they are", "layers compiled"
_BLOCK_ROWS = {"gpt_neo": 4, "smollm2": 2}
_PADDED_STEPS = 1


def trainer_table(console: Console, options: Options) -> None:
    """Rayloom's loop against transformers.Trainer, on short rows and on long blocks."""
    for model in options.model:
        work = answers(model, batch_size=options.rows_per_step, steps=options.steps)
        print_model(console, work.prepared)
        sides = [
            rayloom_side(work, OURS),
            trainer_side(work, GROUPED, work.grouped),
            Side(PADDED, trainer_side(work, PADDED, work.shuffled, pad_to=BLOCK).turn, most=_PADDED_STEPS),
        ]
        turns = take_turns(sides, options.rounds)
        show(console, turns, f"{model}: question-answer rows, {options.rows_per_step} a step")
        verdict(console, turns, OURS, GROUPED, GROUPED_TARGET)
        verdict(console, turns, OURS, PADDED, PADDED_TARGET)
        console.print()
        long_blocks(console, model, options)


def long_blocks(console: Console, model: str, options: Options) -> None:
    """Rows of the same full length, where nothing can be saved."""
    size = _BLOCK_ROWS[model]
    work = blocks(model, batch_size=size, steps=max(1, options.steps // 4))
    name = "Trainer"
    turns = take_turns([rayloom_side(work, OURS), trainer_side(work, name, work.grouped)], options.rounds)
    show(console, turns, f"{model}: blocks of {BLOCK} tokens, {size} a step")
    verdict(console, turns, OURS, name, BLOCK_TARGET)
    console.print()


def zero_table(console: Console, options: Options) -> None:
    """DeepSpeed at ZeRO 1 against the plain backend, both of one process."""
    lonely_group()
    for model in options.model:
        work = answers(model, batch_size=options.rows_per_step, steps=options.steps)
        print_model(console, work.prepared)
        sharded = config_of(model, ANSWERS, batch_size=options.rows_per_step, distributed={"zero_stage": 1})
        sides = [rayloom_side(work, PLAIN), zero_side(work, sharded)]
        turns = take_turns(sides, options.rounds)
        show(console, turns, f"{model}: question-answer rows, {options.rows_per_step} a step, bf16")
        verdict(console, turns, ZERO, PLAIN, ZERO_TARGET)
        console.print()


def compile_table(console: Console, options: Options) -> None:
    """Compiled layers against layers as they are, on short rows and on long blocks."""
    for model in options.model:
        size = _BLOCK_ROWS[model]
        short = answers(model, batch_size=options.rows_per_step, steps=options.steps)
        print_model(console, short.prepared)
        long = blocks(model, batch_size=size, steps=max(1, options.steps // 4))
        titles = (f"question-answer rows, {options.rows_per_step} a step", f"blocks of {BLOCK} tokens, {size} a step")
        for work, title in zip((short, long), titles, strict=True):
            turns = take_turns([rayloom_side(work, AS_IS), rayloom_side(compiled(work), COMPILED)], options.rounds)
            show(console, turns, f"{model}: {title}, bf16")
            verdict(console, turns, COMPILED, AS_IS, COMPILED_TARGET)
            console.print()


def compiled(work: Work) -> Work:
    """The same run with compiled layers."""
    config = work.prepared.config
    training = config.training.model_copy(update={"compile": True})
    return replace(work, prepared=replace(work.prepared, config=config.model_copy(update={"training": training})))


def zero_side(work: Work, config: RunConfig) -> Side:
    """The same loop with a DeepSpeed backend."""
    longest = int(work.prepared.train.lengths.max())
    backend, _ = build_backend(config, work.prepared.source, CPU, longest=longest)
    return rayloom_side(work, ZERO, backend)


def lonely_group() -> None:
    """DeepSpeed wants a process group, if only of one, as Ray Train makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)


def take_turns(sides: Sequence[Side], rounds: int) -> Turns:
    """All sides in every round, in every other round backwards, after a short first turn that does not count."""
    for side in sides:
        side.turn(1)
    turns: Turns = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            turns[side.name].append(side.turn(side.most))
    return turns


def show(console: Console, turns: Turns, title: str) -> None:
    """Speeds of all sides."""
    numbers = ("median", "slowest", "fastest", "real tokens/turn", "last loss")
    table = Table(Column("real tokens/s", no_wrap=True), *(Column(name, justify="right") for name in numbers))
    table.title, table.title_justify = title, "left"
    for name, each in turns.items():
        speeds = [turn.speed for turn in each]
        cells = (f"{value:.1f}" for value in (statistics.median(speeds), min(speeds), max(speeds)))
        table.add_row(name, *cells, str(each[-1].tokens), f"{each[-1].loss:.4f}")
    console.print(table)


def verdict(console: Console, turns: Turns, side: str, base: str, target: float) -> None:
    """The median over rounds of two sides' ratio in the same round."""
    ratios = [one.speed / other.speed for one, other in zip(turns[side], turns[base], strict=True)]
    ratio = statistics.median(ratios)
    text = f"{ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    print_verdict(console, f"({side}) / ({base})", text, f"≥ {target:g} x", met=ratio >= target)
