"""The engine benchmark's tables of what things cost within Rayloom. See `bench_engine.py`.

Adapters, constraints, what is not the model, and the distance to the machine's limits.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, Process, Side, Turn, answer, exports_of, opening
from engine_sides import ours
from measure import SMOLLM2, print_verdict
from peers.protocol import Request
from rich.console import Console
from rich.table import Column, Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from workloads import Model, even

ADAPTERS_TARGET, CONSTRAINTS_TARGET, OVERHEAD_TARGET = 0.8, 0.1, 0.15
GEMM_TARGETS = {"llama": 0.5, "t5": 0.4}
LIMITS = Path(__file__).resolve().parent / "limits.py"
REGEX = r"[A-Za-z0-9 ,.;:'!?\n-]*"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "year": {"type": "integer"},
        "facts": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "year", "facts"],
    "additionalProperties": False,
}
CONSTRAINTS: dict[str, dict[str, Any]] = {"regex": {"regex": REGEX}, "json_schema": {"json_schema": SCHEMA}}
_LEAST_TOKENS = 48
"""Room for a whole object of the schema."""
_BATCH, _NEW_TOKENS = 32, 64

Workload = Sequence[Request]


def alternate(
    model: Model, contender: Contender, workloads: Mapping[str, Workload], *, threads: int, rounds: int
) -> dict[str, list[Turn]]:
    """Several workloads on one engine, in turn.

    First it answers the workloads' first requests in the same ways: adapters are loaded then and grammars compiled.

    Raises:
        SystemExit: The engine does not run.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in workloads}
    side = Side(contender)
    with opening(contender, model, threads) as process:
        for requests in workloads.values():
            _turn(side, process, _one_of_each(requests))
        for number in range(rounds):
            for name in list(workloads)[:: -1 if number % 2 else 1]:
                turns[name].append(_turn(side, process, workloads[name]))
    return turns


def _one_of_each(requests: Workload) -> list[Request]:
    return list({request.adapter: replace(request, new_tokens=_LEAST_TOKENS) for request in requests}.values())


def _turn(side: Side, process: Process, requests: Workload) -> Turn:
    side.absent = process.absent
    if side.absent is None:
        answer(side, process, requests)
    if side.absent is not None:
        raise SystemExit(f"{side.contender.name}: {side.absent}")
    return side.turns.pop()


def adapter_table(
    console: Console, model: Model, requests: Workload, options: dict[str, Any], *, threads: int, rounds: int
) -> None:
    """Every request with one of many adapters, against none of them."""
    count = 32
    folders = make_adapters(model, count)
    mixed = [replace(request, adapter=folders[place % count]) for place, request in enumerate(requests)]
    one = [replace(request, adapter=folders[0]) for request in requests]
    workloads = {"base": requests, "one adapter": one, f"{count} adapters": mixed}
    table = _table(f"{model.name}, {threads} thread(s): LoRA adapters, r {SMOLLM2['lora']['r']}", "tokens/s", "of base")
    verdicts = []
    for precision in ("fp32", "int8"):
        contender = ours(precision, options | {"max_adapters": count})
        turns = alternate(model, contender, workloads, threads=threads, rounds=rounds)
        for name in workloads:
            share = _ratio(turns[name], turns["base"])
            table.add_row(f"{contender.name}, {name}", f"{_speed(turns[name]):.1f}", f"{share:.0%}")
        verdicts.append((contender.name, _ratio(turns[f"{count} adapters"], turns["base"])))
    console.print(table)
    for name, share in verdicts:
        label = f"throughput that {count} adapters keep, {name}"
        print_verdict(console, label, f"{share:.0%}", f"≥ {ADAPTERS_TARGET:.0%}", met=share >= ADAPTERS_TARGET)


def make_adapters(model: Model, count: int) -> list[str]:
    """Folders of random LoRA adapters as PEFT saves them, made once."""
    root = exports_of(model) / f"adapters-{count}"
    folders = [str(root / str(number)) for number in range(count)]
    if all((Path(folder) / "adapter_config.json").exists() for folder in folders):
        return folders
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(_loaded(model), LoraConfig(**SMOLLM2["lora"]))
    torch.manual_seed(0)
    for folder in folders:
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.02)
        wrapped.save_pretrained(folder)
    return folders


def constraint_sides(options: dict[str, Any], only: Sequence[str]) -> list[tuple[str, Contender]]:
    """Kinds of constraints and who answers under them.

    Args:
        options: What the engine is opened with.
        only: Words; sides whose name holds none of them are left out. Empty for all.
    """
    sides = [(kind, ours(precision, options)) for kind, precision in itertools.product(CONSTRAINTS, ("fp32", "int8"))]
    return [(kind, side) for kind, side in sides if not only or any(word in f"{side.name}, {kind}" for word in only)]


def constraint_table(
    console: Console,
    model: Model,
    requests: Workload,
    sides: Sequence[tuple[str, Contender]],
    *,
    threads: int,
    rounds: int,
) -> None:
    """Answers under a constraint, against free ones of exactly the lengths that the constrained ones had.

    The processor's time for them is told as well: what other people do on the machine moves it less.
    """
    roomy = [replace(request, new_tokens=max(_LEAST_TOKENS, request.new_tokens)) for request in requests]
    table = _table(
        f"{model.name}, {threads} thread(s): constraints", "tokens/s", "free tokens/s", "cost", "of CPU time"
    )
    verdicts = []
    for kind, contender in sides:
        bound = [replace(request, constraint=CONSTRAINTS[kind]) for request in roomy]
        (first,) = alternate(model, contender, {kind: bound}, threads=threads, rounds=1)[kind]
        free = [replace(request, new_tokens=len(first.tokens[place])) for place, request in enumerate(roomy)]
        turns = alternate(model, contender, {kind: bound, "free": free}, threads=threads, rounds=rounds)
        cost = 1 - _ratio(turns[kind], turns["free"])
        speeds = (f"{_speed(turns[name]):.1f}" for name in (kind, "free"))
        table.add_row(
            f"{contender.name}, {kind}", *speeds, f"{cost:.1%}", f"{_cpu_cost(turns[kind], turns['free']):.1%}"
        )
        verdicts.append((f"{kind}, {contender.name}", cost))
    console.print(table)
    for name, cost in verdicts:
        label = f"cost of constraints, {name}"
        print_verdict(console, label, f"{cost:.1%}", f"< {CONSTRAINTS_TARGET:.0%}", met=cost < CONSTRAINTS_TARGET)


@dataclass(frozen=True)
class Work:
    """Multiplications and additions of linear layers, two operations per weight.

    Attributes:
        prompt: For each prompt token.
        answer: For each generated token.
    """

    prompt: float
    answer: float

    def of(self, turn: Turn) -> float:
        """All that a turn took at least."""
        return self.prompt * turn.prompt_tokens + self.answer * turn.new_tokens


def overhead_table(
    console: Console, models: Sequence[Callable[[], Model]], options: dict[str, Any], *, threads: int, rounds: int
) -> None:
    """Steps at batch 32: seconds outside the model, and how far the model is from what the machine can do."""
    limits = machine_limits(threads)
    show_limits(console, limits, threads)
    table = _table(
        f"batch {_BATCH}, {threads} thread(s)",
        "tokens/s",
        "step ms",
        "outside the model",
        "GFLOP/s",
        "of GEMM",
        "cached",
    )
    verdicts: list[tuple[str, str, str, bool]] = []
    for model, precision in ((make(), name) for make in models for name in ("fp32", "bf16", "int8")):
        requests = even(model, _BATCH, new_tokens=_NEW_TOKENS)
        turns = alternate(model, ours(precision, options), {"batch": requests}, threads=threads, rounds=rounds)["batch"]
        rate = statistics.median(work_of(model).of(turn) / turn.seconds for turn in turns)
        outside = statistics.median(1 - turn.stats["model_s"] / turn.seconds for turn in turns)
        step = statistics.median(turn.seconds / turn.stats["steps"] for turn in turns)
        share, cached = rate / limits[precision], rate / limits[f"{precision} cached"]
        name = f"{model.name}, {precision}"
        cells = (f"{_speed(turns):.1f}", f"{step * 1e3:.1f}", f"{outside:.1%}", f"{rate / 1e9:.0f}")
        table.add_row(name, *cells, f"{share:.0%}", f"{cached:.0%}")
        verdicts.append((f"outside the model, {name}", f"{outside:.1%}", "< 15%", outside < OVERHEAD_TARGET))
        if (least := GEMM_TARGETS.get(str(AutoConfig.from_pretrained(model.folder).model_type))) is not None:
            verdicts.append((f"share of the GEMM limit, {name}", f"{share:.0%}", f"≥ {least:.0%}", share >= least))
    console.print(table)
    for label, value, target, met in verdicts:
        print_verdict(console, label, value, target, met=met)


def machine_limits(threads: int) -> dict[str, float]:
    """What `limits.py` finds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(LIMITS), "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def show_limits(console: Console, limits: Mapping[str, float], threads: int) -> None:
    """One line."""
    products = ", ".join(
        f"{name} {limits[name] / 1e9:.0f} ({limits[f'{name} cached'] / 1e9:.0f} with the weights in cache)"
        for name in ("fp32", "bf16", "int8")
    )
    console.print(
        f"the machine, {threads} thread(s): reads {limits['read'] / 1e9:.1f} GB/s; "
        f"GEMM of 32 rows, GFLOP/s: {products}",
        highlight=False,
    )


def work_of(model: Model) -> Work:
    """Counted from the model's linear layers."""
    prompt = answer_work = 0
    for name, module in _loaded(model).named_modules():
        if isinstance(module, torch.nn.Linear):
            reads_prompt = name.startswith("encoder.") or ".EncDecAttention.k" in name or ".EncDecAttention.v" in name
            weights = module.weight.numel()
            if not reads_prompt:
                answer_work += weights
            if reads_prompt or not (model.seq2seq or name == "lm_head"):
                prompt += weights
    return Work(2.0 * prompt, 2.0 * answer_work)


def _loaded(model: Model) -> Any:
    auto = AutoModelForSeq2SeqLM if model.seq2seq else AutoModelForCausalLM
    return auto.from_pretrained(model.folder)


def _table(title: str, *columns: str) -> Table:
    return Table(Column("side", no_wrap=True), *(Column(name, justify="right") for name in columns), title=title)


def _speed(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.speed for turn in turns)


def _cpu_cost(turns: Sequence[Turn], base: Sequence[Turn]) -> float:
    """Share of the processor's time that equally many tokens of the base do without; median over rounds."""
    pairs = zip(turns, base, strict=True)
    return statistics.median(1 - theirs.stats["cpu_s"] / mine.stats["cpu_s"] for mine, theirs in pairs)


def _ratio(turns: Sequence[Turn], base: Sequence[Turn]) -> float:
    """Median over rounds."""
    return statistics.median(mine.speed / theirs.speed for mine, theirs in zip(turns, base, strict=True))
