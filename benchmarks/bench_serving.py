"""The service: what HTTP and Ray cost, other ways to serve `generate`, and how it bears a crowd.

SmolLM2-135M in fp32, one replica. Every side computes with as many threads, pinned to as many cores; Serve's other
processes and the clients (plain asyncio) have what is left of the machine. Prompts are token ids, lengths are forced.
Sides take turns, in every other round backwards; ratios are medians over rounds.

Tables (--table, several may be named; all by default):

* overhead: 64 requests at once (prompts of 10-120 tokens, answers of 8-128), through Serve and to the engine alone;
  and the time to the first token of single requests.
* tutorial: 32 clients, against FastAPI around `generate` with one request at a time (which gets one for each client).
* batch: 32 clients, three answers of 8 tokens for each of 256, against `@serve.batch` over `generate`.
* flood: four clients of one key, beside four and beside 64 of another.
* overload: requests at ten times the rate that the service has at capacity (16 clients, 8 slots). Capacity is what
  "uncontended" means: a client alone has the whole machine, so its p95 is shown, too.
* soak: mixed load for --minutes, a third of the clients hangs up at a random moment.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import serving_pressure as pressure
import serving_tables as tables
import torch
from measure import print_machine
from rich.console import Console
from workloads import Model, smollm2

_WIDTH = 120
TABLES: dict[str, Callable[[Console, Model, argparse.Namespace], None]] = {
    "overhead": tables.overhead,
    "tutorial": tables.tutorial,
    "batch": tables.batch,
    "flood": pressure.flood,
    "overload": pressure.overload,
    "soak": pressure.soak,
}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # this process only asks
    console = Console(soft_wrap=True, width=_WIDTH)
    print_machine(console, threads=options.threads)
    model = smollm2()
    for name in options.table or TABLES:
        console.rule(name)
        TABLES[name](console, model, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", action="append", choices=tuple(TABLES), help="only this table; may be given several times")
    add("--rounds", type=int, default=3, help="turns of each side (default 3)")
    add("--threads", type=int, default=1, help="compute threads of each side (default 1)")
    add("--precision", default="fp32", choices=("fp32", "bf16", "int8"), help="of Rayloom; peers have fp32")
    add("--requests", type=int, default=64, help="requests of a turn (default 64)")
    add("--clients", type=int, default=tables.CLIENTS, help="clients of tutorial and batch (default 32)")
    add("--singles", type=int, default=32, help="single requests that tell the time to the first token (default 32)")
    add("--seconds", type=float, default=60.0, help="length of a turn of flood and overload (default 60)")
    add("--minutes", type=float, default=2.0, help="length of the soak (default 2)")
    add("--quick", action="store_true", help="few and short requests: whether everything runs, without figures")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.requests, options.clients = 1, 8, 4
        options.singles, options.seconds, options.minutes = 2, 3.0, 0.1
    return options


if __name__ == "__main__":
    main()
