"""The serving benchmark's comparisons: what HTTP and Ray cost, and two peers. See `bench_serving.py`."""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import serving_load as load
from contenders import ENGINE, Contender, Process, opening
from measure import print_verdict
from peers.protocol import Request
from rich.console import Console
from rich.table import Column, Table
from serving_load import Ask, Run
from serving_sides import batched_service, rayloom_service, tutorial_service
from workloads import Model, even, mix

OVERHEAD_TARGET, FIRST_TARGET_MS = 0.10, 15.0
TUTORIAL_TARGET = 8.0
BATCH_TARGET, BATCH_P95_TARGET = 3.0, 5.0
CLIENTS = 32
SHORT, LONG = "short", "long"
_SLOTS = 64
Options = argparse.Namespace


def overhead(console: Console, model: Model, options: Options) -> None:
    """Tokens per second of requests that come at once, and seconds to the first token of one alone."""
    requests = scaled(mix(model, options.requests), options)
    singles = [Request(request.prompt, 1) for request in mix(model, options.singles, seed=3)]
    engine = Contender("the engine alone", ENGINE, options.precision, options={"max_sequences": _SLOTS})
    speeds: dict[str, list[float]] = {name: [] for name in ("engine", "whole", "stream")}
    firsts: dict[str, list[float]] = {"engine": [], "stream": []}
    with service(model, options, max_batch_size=_SLOTS) as url, opening(engine, model, options.threads) as process:
        first_token(url, singles)  # as the engine alone has answered a little when it is opened
        for number in range(options.rounds):
            sides: list[tuple[str, Callable[[], float]]] = [
                ("engine", lambda: engine_speed(process, requests)),
                ("whole", lambda: speed(url, requests, stream=False)),
                ("stream", lambda: speed(url, requests, stream=True)),
            ]
            for name, measure in sides[:: -1 if number % 2 else 1]:
                speeds[name].append(measure())
            firsts["engine"].append(statistics.median(engine_latency(process, each) for each in singles))
            firsts["stream"].append(first_token(url, singles))
    show_overhead(console, speeds, firsts)


def show_overhead(console: Console, speeds: dict[str, list[float]], firsts: dict[str, list[float]]) -> None:
    table = Table(
        "side",
        *(Column(name, justify="right") for name in ("tokens/s", "each round", "of the engine's", "first token ms")),
    )
    for name, values in speeds.items():
        share = statistics.median(mine / theirs for mine, theirs in zip(values, speeds["engine"], strict=True))
        first = f"{1000 * statistics.median(firsts[name]):.1f}" if name in firsts else ""
        rounds = " ".join(f"{value:.0f}" for value in values)
        table.add_row(_TITLES[name], f"{statistics.median(values):.1f}", rounds, f"{share:.1%}", first)
    console.print(table)
    for name in ("whole", "stream"):
        lost = 1 - statistics.median(mine / theirs for mine, theirs in zip(speeds[name], speeds["engine"], strict=True))
        label = f"tokens/s that HTTP and Ray cost, {_TITLES[name]}"
        print_verdict(console, label, f"{lost:.1%}", f"≤ {OVERHEAD_TARGET:.0%}", met=lost <= OVERHEAD_TARGET)
    added = 1000 * statistics.median(
        mine - theirs for mine, theirs in zip(firsts["stream"], firsts["engine"], strict=True)
    )
    label = "added to the median first token"
    print_verdict(console, label, f"{added:.1f} ms", f"≤ {FIRST_TARGET_MS:g} ms", met=added <= FIRST_TARGET_MS)


_TITLES = {"engine": "the engine alone", "whole": "over Serve, whole answers", "stream": "over Serve, streams"}


def tutorial(console: Console, model: Model, options: Options) -> None:
    """Requests per second of 32 clients."""
    requests = scaled(mix(model, options.requests), options)
    few = requests[: options.clients]
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    with (
        service(model, options, max_batch_size=options.clients) as url,
        tutorial_service(model, options.threads) as old,
    ):
        load.one_by_one([plain(old, few[0]), load.completion(url, few[0])]).check()
        for number in range(options.rounds):
            sides: list[tuple[str, list[Ask]]] = [
                ("theirs", [plain(old, each) for each in few]),
                ("ours", [load.completion(url, each) for each in requests]),
            ]
            for name, asks in sides[:: -1 if number % 2 else 1]:
                rates[name].append(load.together(asks, clients=options.clients).check().requests_per_s)
    ratio = paired(rates["ours"], rates["theirs"])
    table = Table(Column("side", no_wrap=True), Column("requests/s", justify="right"))
    table.add_row("FastAPI + generate, one request at a time", f"{statistics.median(rates['theirs']):.3f}")
    table.add_row("Rayloom", f"{statistics.median(rates['ours']):.3f}")
    console.print(table)
    label = f"requests/s of {options.clients} clients, over the tutorials' service"
    print_verdict(console, label, f"{ratio:.1f} x", f"≥ {TUTORIAL_TARGET:g} x", met=ratio >= TUTORIAL_TARGET)


def batch(console: Console, model: Model, options: Options) -> None:
    """Answers of 8 and of 256 tokens, mixed."""
    asked = short_and_long(model, options)
    runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
    with service(model, options, max_batch_size=options.clients) as url:
        old = batched_service(url, model, options.threads)
        sides: list[tuple[str, list[Ask]]] = [
            ("theirs", [plain(old, request, kind=kind) for kind, request in asked]),
            ("ours", [load.completion(url, request, kind=kind) for kind, request in asked]),
        ]
        for _, asks in sides:
            load.one_by_one(asks[:1]).check()
        for number in range(options.rounds):
            for name, asks in sides[:: -1 if number % 2 else 1]:
                runs[name].append(load.together(asks, clients=options.clients).check())
    show_batch(console, runs)


def show_batch(console: Console, runs: dict[str, list[Run]]) -> None:
    names = ("tokens/s", "short: median s", "short: p95 s", "long: p95 s")
    table = Table(Column("side", no_wrap=True), *(Column(name, justify="right") for name in names))
    for name, title in (("theirs", "@serve.batch over generate"), ("ours", "Rayloom")):
        cells = [
            statistics.median(run.tokens_per_s for run in runs[name]),
            statistics.median(statistics.median(each.seconds for each in run.good(SHORT)) for run in runs[name]),
            statistics.median(run.p95_s(SHORT) for run in runs[name]),
            statistics.median(run.p95_s(LONG) for run in runs[name]),
        ]
        table.add_row(title, *(f"{cell:.2f}" for cell in cells))
    console.print(table)
    ratio = paired([run.tokens_per_s for run in runs["ours"]], [run.tokens_per_s for run in runs["theirs"]])
    print_verdict(console, "tokens/s over @serve.batch", f"{ratio:.1f} x", f"≥ {BATCH_TARGET:g} x",
                  met=ratio >= BATCH_TARGET)  # fmt: skip
    better = paired([run.p95_s(SHORT) for run in runs["theirs"]], [run.p95_s(SHORT) for run in runs["ours"]])
    print_verdict(console, "p95 of short answers, better than @serve.batch", f"{better:.1f} x",
                  f"≥ {BATCH_P95_TARGET:g} x", met=better >= BATCH_P95_TARGET)  # fmt: skip


def service(model: Model, options: Options, **more: Any) -> AbstractContextManager[str]:
    """Rayloom, opened as the options say."""
    return rayloom_service(model, options.threads, precision=options.precision, **more)


def scaled(requests: Sequence[Request], options: Options) -> list[Request]:
    """The same requests with as many tokens as a look at everything takes, if that is wanted."""
    return [Request(each.prompt, min(each.new_tokens, 4)) if options.quick else each for each in requests]


def short_and_long(model: Model, options: Options) -> list[tuple[str, Request]]:
    """Three short answers for each long one, in random order."""
    short_tokens, long_tokens = (2, 8) if options.quick else (8, 256)
    count = options.requests // 4
    asked = [(LONG, request) for request in even(model, count, new_tokens=long_tokens)]
    asked += [(SHORT, request) for request in even(model, 3 * count, new_tokens=short_tokens, seed=2)]
    random.Random(0).shuffle(asked)
    return asked


def plain(url: str, request: Request, *, kind: str = "") -> Ask:
    """A request as the peers' services take it."""
    return Ask(url, {"prompt": request.prompt, "max_new_tokens": request.new_tokens}, kind=kind)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of the ratio of one round."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def speed(url: str, requests: Sequence[Request], *, stream: bool) -> float:
    """Tokens per second of requests that come at once."""
    return load.together([load.completion(url, each, stream=stream) for each in requests]).check().tokens_per_s


def first_token(url: str, requests: Sequence[Request]) -> float:
    """Median seconds to a stream's first token, one request after another."""
    asks = [load.completion(url, Request(each.prompt, 4), stream=True) for each in requests]
    return statistics.median(reply.first_s for reply in load.one_by_one(asks).check().replies)


def engine_speed(process: Process, requests: Sequence[Request]) -> float:
    """Tokens per second of the engine without a service."""
    reply = _asked(process, requests)
    return sum(len(answer["tokens"]) for answer in reply["answers"]) / float(reply["seconds"])


def engine_latency(process: Process, request: Request) -> float:
    """Seconds to an answer of one token."""
    return float(_asked(process, [request])["answers"][0]["seconds"])


def _asked(process: Process, requests: Sequence[Request]) -> dict[str, Any]:
    reply = process.ask(requests) if process.absent is None else {"error": process.absent}
    if "error" in reply:
        raise SystemExit(f"the engine alone failed: {reply['error']}")
    return reply


def endless(asks: Sequence[Ask]) -> Callable[[], Ask]:
    """One of them after another, again and again."""
    turns = itertools.cycle(asks)
    return lambda: next(turns)
