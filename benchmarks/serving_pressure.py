"""The serving benchmark's bad days: a key that floods, ten times too much, and clients that hang up.

See `bench_serving.py`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import serving_load as load
from measure import print_verdict
from rich.console import Console
from rich.table import Column, Table
from serving_load import Ask, Run
from serving_sides import service_memory
from serving_tables import endless, scaled, service
from workloads import Model, even, mix

from rayloom.serving.keys import KeyStore, Terms

FLOOD_TARGET, OVERLOAD_TARGET = 0.20, 2.0
GROWTH_TARGET = 0.05
_SLOTS, _FEW, _MANY = 8, 4, 64
_TIMES = 10
Options = argparse.Namespace


def flood(console: Console, model: Model, options: Options) -> None:
    """Answers to one key: alone, beside another that asks as much, and beside one that floods."""
    requests = scaled(even(model, 32, new_tokens=32), options)
    p95: dict[str, list[float]] = {"alone": [], "beside one like it": [], "beside a flood": []}
    refused: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        store = KeyStore(Path(folder) / "keys.yaml")
        own, other = (store.create(name, Terms()) for name in ("own", "other"))
        with service(model, options, max_batch_size=_SLOTS, keys_file=str(store.path)) as url:
            asks = {key: [load.completion(url, each, key=key, kind=key) for each in requests] for key in (own, other)}
            for number in range(options.rounds):
                order = list(zip(p95, (0, _FEW, _MANY), strict=True))
                for name, count in order[:: -1 if number % 2 else 1]:
                    groups = [(endless(asks[own]), _FEW), (endless(asks[other]), count)]
                    run = load.side_by_side(groups, seconds=options.seconds)
                    p95[name].append(run.p95_s(own))
                    refused.update(reply.status for reply in run.replies if reply.kind == own)
    table = Table(Column("the key's clients are", no_wrap=True), Column("p95 s", justify="right"))
    for name, values in p95.items():
        table.add_row(name, f"{statistics.median(values):.2f}")
    console.print(table)
    console.print(f"the key's own answers by status: {dict(refused)}", highlight=False)
    moved = statistics.median(
        after / before - 1 for after, before in zip(p95["beside a flood"], p95["beside one like it"], strict=True)
    )
    label = f"{_MANY} clients of another key instead of {_FEW} move the p95 by"
    print_verdict(console, label, f"{moved:+.0%}", f"< {FLOOD_TARGET:.0%}", met=moved < FLOOD_TARGET)


def overload(console: Console, model: Model, options: Options) -> None:
    """As many requests as fit, and ten times as many."""
    requests = scaled(mix(model, options.requests), options)
    rows: dict[str, list[Run]] = {"one client": [], "at capacity": [], f"{_TIMES} x capacity": []}
    with service(model, options, max_batch_size=_SLOTS, max_queued_requests=_SLOTS) as url:
        asks = [load.completion(url, each) for each in requests]
        load.one_by_one(asks[:2])
        for _ in range(options.rounds):
            rows["one client"].append(load.one_by_one(asks[: max(4, _SLOTS)]))
            # Some wait in the engine, so that it is never idle. (Serve's router may refuse a few that begin at once.)
            full = load.together(asks, clients=2 * _SLOTS)
            rows["at capacity"].append(full)
            rate, seconds = _TIMES * full.requests_per_s, options.seconds
            rows[f"{_TIMES} x capacity"].append(
                load.arriving(itertools.cycle(asks), per_s=rate, seconds=seconds, seed=len(rows))
            )
    show_overload(console, rows)


def show_overload(console: Console, rows: dict[str, list[Run]]) -> None:
    names = ("asked", "answered", "429", "others", "p95 of answers s")
    table = Table(Column("load", no_wrap=True), *(Column(name, justify="right") for name in names))
    for name, runs in rows.items():
        statuses = Counter(reply.status for run in runs for reply in run.replies)
        others = sum(count for status, count in statuses.items() if status not in (200, 429))
        p95 = statistics.median(run.p95_s() for run in runs)
        table.add_row(name, *map(str, (statuses.total(), statuses[200], statuses[429], others)), f"{p95:.2f}")
    console.print(table)
    *_, full, flooded = rows.values()
    ratio = statistics.median(hot.p95_s() / calm.p95_s() for hot, calm in zip(flooded, full, strict=True))
    label = f"p95 of what is accepted at {_TIMES} x capacity, over that at capacity"
    print_verdict(console, label, f"{ratio:.2f} x", f"≤ {OVERLOAD_TARGET:g} x", met=ratio <= OVERLOAD_TARGET)
    told = [reply for run in flooded for reply in run.replies if reply.status != 200]
    good = sum(reply.status == 429 and (reply.retry_after or "").isdigit() for reply in told)
    print_verdict(console, "refused with 429 and Retry-After", f"{good} of {len(told)}", "all", met=good == len(told))


def soak(console: Console, model: Model, options: Options) -> None:
    """All kinds of requests for minutes, of which a third hang up."""
    most = 64
    with service(model, options, max_batch_size=_SLOTS, max_queued_requests=most - 2 * _SLOTS) as url:
        visits = endless_visits(url, model, options)
        load.side_by_side([(visits, 16)], seconds=options.seconds)  # what is opened once is opened now
        seen, memory = Counter[str](), [service_memory()]
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            piece_s = min(60.0, 60 * options.minutes / 4)
            run = load.side_by_side([(visits, 16)], seconds=piece_s)
            seen.update(str(reply.status or reply.error) for reply in run.replies)
            memory.append(service_memory())
            console.print(f"{dict(seen)}, {sum(memory[-1].values()):.0f} MiB", highlight=False)
        is_free = all_places_are_free(url, model, most)
    show_soak(console, seen, memory, is_free=is_free)


def endless_visits(url: str, model: Model, options: Options) -> Callable[[], Ask]:
    """Whole answers and streams of all lengths; a third of the clients does not wait for the end."""
    requests, rng = scaled(mix(model, 64), options), random.Random(0)

    def visits() -> Iterator[Ask]:
        for request in itertools.cycle(requests):
            patience_s = rng.expovariate(1.0) if rng.random() < 1 / 3 else None
            yield load.completion(url, request, stream=rng.random() < 0.5, patience_s=patience_s)

    turns = visits()
    return lambda: next(turns)


def all_places_are_free(url: str, model: Model, most: int) -> bool:
    """Whether as many calls as may be in flight get in together, and one more does not."""
    prompt = even(model, 1, new_tokens=1)[0].prompt

    def status(count: int) -> int:
        body = {"prompt": [prompt] * count, "max_tokens": 1, "temperature": 0}
        return load.one_by_one([Ask(f"{url}/v1/completions", body)]).replies[0].status

    for _ in range(20):  # those who hung up last may just be leaving
        if status(most) == 200:
            return status(most + 1) == 429
        time.sleep(0.5)
    return False


def show_soak(console: Console, seen: Counter[str], memory: list[dict[str, float]], *, is_free: bool) -> None:
    """Memory after warming up and at the end, process by process."""
    table = Table(
        Column("process", no_wrap=True), *(Column(name, justify="right") for name in ("first MiB", "last MiB"))
    )
    for name, first in memory[0].items():
        table.add_row(name, f"{first:.0f}", f"{memory[-1].get(name, 0.0):.0f}")
    console.print(table)
    first, last = (sum(each.values()) for each in (memory[0], memory[-1]))
    growth = last / first - 1
    print_verdict(console, "memory grew by", f"{growth:+.1%}", f"≤ {GROWTH_TARGET:.0%}", met=growth <= GROWTH_TARGET)
    print_verdict(console, "all places are free", str(is_free), "True", met=is_free)
    known = {"200", "429", load.HANG_UP}
    others = {name: count for name, count in seen.items() if name not in known}
    print_verdict(console, "neither answered, refused with 429 nor hung up", str(others or 0), "0", met=not others)
