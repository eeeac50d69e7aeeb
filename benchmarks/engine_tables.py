"""The engine benchmark's tables of speed and latency. See `bench_engine.py`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from contenders import Contender, Side, references, take_turns
from engine_sides import ONE, Target
from measure import print_verdict
from peers.protocol import Request
from rich.console import Console
from rich.table import Column, Table
from workloads import SHORT_ANSWER, Model

LATENCY_TARGET = 3.0
Sides = Sequence[Side]


def speed_table(
    console: Console,
    model: Model,
    contenders: Sequence[Contender],
    requests: Sequence[Request],
    *,
    threads: int,
    rounds: int,
) -> list[Side]:
    """Everyone's tokens per second, and how much of it is what fp32 `generate` answers."""
    answers = references(model, requests)
    sides = take_turns(model, contenders, requests, threads=threads, rounds=rounds)
    base = next((side for side in sides if side.contender.name == ONE and side.turns), None)
    table = Table(
        Column("side", no_wrap=True),
        *(
            Column(name, justify="right")
            for name in ("tokens/s", "slowest-fastest", "x", "equal answers", "equal tokens")
        ),
        title=f"{model.name}, {threads} thread{'s' if threads > 1 else ''}",
    )
    for side in sides:
        table.add_row(side.contender.name, *_cells(side, base, answers))
    console.print(table)
    show_absent(console, sides)
    show_libraries(console, sides)
    return sides


def _cells(side: Side, base: Side | None, answers: Sequence[Sequence[int]]) -> list[str]:
    if not side.turns:
        return ["absent", "", "", "", ""]
    speeds = [turn.speed for turn in side.turns]
    ratio = side.ratio(base) if base else None
    whole, part = agreement(side, answers)
    return [
        f"{side.speed:.1f}",
        f"{min(speeds):.0f}-{max(speeds):.0f}",
        f"{ratio:.1f}" if ratio else "",
        f"{whole:.0%}",
        f"{part:.0%}",
    ]


def agreement(side: Side, answers: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Shares of whole answers, and of tokens before an answer's first difference, that are fp32 `generate`'s."""
    turn = side.turns[-1]
    pairs = [(tokens, answers[place]) for place, tokens in turn.tokens.items()]
    common = sum(_common(mine, theirs) for mine, theirs in pairs)
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs), common / sum(len(theirs) for _, theirs in pairs)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def show_targets(console: Console, sides: Sides, targets: Sequence[Target]) -> None:
    """Each target's ratio, or why there is none."""
    by_name = {side.contender.name: side for side in sides}
    for target in targets:
        label = f"{target.ours} over {target.theirs}"
        mine, theirs = by_name.get(target.ours), by_name.get(target.theirs)
        ratio = mine.ratio(theirs) if mine and theirs else None
        if ratio is None:
            console.print(f"{label}: not measured", highlight=False)
        else:
            print_verdict(console, label, f"{ratio:.2f} x", f"≥ {target.least:g} x", met=ratio >= target.least)


def show_absent(console: Console, sides: Sides) -> None:
    """Who did not run, and why."""
    for side in sides:
        if side.absent:
            console.print(f"{side.contender.name}: {side.absent}", highlight=False, markup=False)


def show_libraries(console: Console, sides: Sides) -> None:
    """Versions of the peers' libraries."""
    versions = {f"{name} {version}" for side in sides for name, version in side.libraries.items()}
    if versions:
        console.print(", ".join(sorted(versions)), highlight=False)


def beam_table(console: Console, sides: Sides) -> None:
    """Answered requests per second, beside the tokens of the table above."""
    for side in sides:
        if side.turns:
            rate = statistics.median(len(turn.tokens) / turn.seconds for turn in side.turns)
            console.print(f"{side.contender.name}: {rate:.2f} sequences/s", highlight=False)


def latency_table(
    console: Console,
    model: Model,
    contenders: Sequence[Contender],
    requests: Sequence[Request],
    *,
    threads: int,
    rounds: int,
) -> None:
    """How long short and all answers took, when all requests came at once."""
    sides = take_turns(model, contenders, requests, threads=threads, rounds=rounds)
    table = Table(
        Column("side", no_wrap=True),
        *(Column(name, justify="right") for name in ("short: median s", "short: p95 s", "all: median s", "all: p95 s")),
        title=f"{model.name}, {threads} thread{'s' if threads > 1 else ''}: seconds until an answer is there "
        f"(short: up to {SHORT_ANSWER} tokens)",
    )
    for side in sides:
        table.add_row(side.contender.name, *(f"{value:.1f}" for value in latencies(side, requests)))
    console.print(table)
    show_absent(console, sides)
    _latency_verdicts(console, sides, requests)


def latencies(side: Side, requests: Sequence[Request]) -> list[float]:
    """Median and 95th percentile over short answers, then over all: each the median of the rounds."""
    if not side.turns:
        return []
    short = [place for place, request in enumerate(requests) if request.new_tokens <= SHORT_ANSWER]
    rows = [
        [
            float(np.percentile([turn.latencies[place] for place in places], percent))
            for places in (short, range(len(requests)))
            for percent in (50, 95)
        ]
        for turn in side.turns
    ]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def _latency_verdicts(console: Console, sides: Sides, requests: Sequence[Request]) -> None:
    """Against static batches of `generate`, and against the engine's own."""
    p95 = {side.contender.name: latencies(side, requests)[1] for side in sides if side.turns}
    engines = [side.contender for side in sides if side.contender.is_engine and side.contender.batch is None]
    for mine in engines:
        rivals = [side.contender for side in sides if side.contender.batch and _alike(side.contender, mine)]
        for rival in rivals:
            if mine.name in p95 and rival.name in p95:
                ratio = p95[rival.name] / p95[mine.name]
                label = f"p95 of short answers: {mine.name} against {rival.name}"
                print_verdict(
                    console, label, f"{ratio:.1f} x better", f"≥ {LATENCY_TARGET:g} x", met=ratio >= LATENCY_TARGET
                )


def _alike(rival: Contender, mine: Contender) -> bool:
    return rival.precision == mine.precision


def per_threads(options: argparse.Namespace, default: Sequence[int], show: Callable[[int], None]) -> None:
    """One table for each number of threads."""
    for threads in options.threads or default:
        show(threads)
