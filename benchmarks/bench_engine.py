"""Rayloom's engine against its peers, and against what this machine can do.

64 requests come at once, with prompts of 10-120 tokens and answers of 8-128. Lengths are forced and greedy (an end of
sequence is a token like others); everyone gets token ids and gives token ids. Peers run in environments of their own
(`make bench-peers`, or benchmarks/peers/setup.py), `transformers` in the project's. A process is pinned to as many
cores as it has threads, keeps its model between rounds, and is stopped while others have their turn. Each round, all
sides answer once, in every other round backwards; ratios are medians over rounds of the two sides' speeds in the same
round. Nobody has a prefix cache that survives a round.

Tables (--table, several may be named; all by default):

* smollm2, t5, gpt-neo: generated tokens per second. Sides that would take minutes answer fewer requests of the same
  mix: one at a time 8, batches of 16 and 32 one batch. "Equal" compares with fp32 `generate` on one request at a time,
  whose answers are kept on disk after the first time.
* beams: T5, width 4, 16 requests of 48 tokens each (CTranslate2 cannot force lengths row by row with beams).
* latency: seconds until short answers are there, static batches against continuous ones.
* adapters: 32 LoRA adapters in one batch against none.
* constraints: a regular expression or a JSON schema for every row, against free answers of the same lengths.
* overhead: share of a step at batch 32 that is spent outside the model; the machine's limits; the share reached.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import engine_sides as sides
import torch
from contenders import Contender
from engine_costs import adapter_table, constraint_sides, constraint_table, overhead_table
from engine_tables import beam_table, latency_table, per_threads, show_targets, speed_table
from measure import print_machine
from rich.console import Console
from workloads import Model, even, gpt_neo, mix, smollm2, t5

BEAM_REQUESTS, BEAM_WIDTH, BEAM_TOKENS = 16, 4, 48
Options = argparse.Namespace
_WIDTH = 120


def main() -> None:
    options = parse()
    torch.set_num_threads(1)  # this process only waits
    console = Console(soft_wrap=True, width=_WIDTH)
    print_machine(console, threads=max(options.threads or (2,)))
    for name in options.table or TABLES:
        console.rule(name)
        TABLES[name](console, options)


def speed(
    make: Callable[[], Model],
    contenders: Callable[[dict[str, Any]], list[Contender]],
    targets: Sequence[sides.Target],
    default: Sequence[int],
) -> Callable[[Console, Options], None]:
    """A table of tokens per second."""

    def run(console: Console, options: Options) -> None:
        model = make()
        chosen = sides.chosen(contenders(engine_options(options)), options.only)
        requests = mix(model, options.requests)

        def show(threads: int) -> None:
            answered = speed_table(console, model, chosen, requests, threads=threads, rounds=options.rounds)
            show_targets(console, answered, targets)

        per_threads(options, default, show)

    return run


def beams(console: Console, options: Options) -> None:
    model = t5()
    chosen = sides.chosen(sides.beam_sides(engine_options(options)), options.only)
    requests = even(model, BEAM_REQUESTS, new_tokens=BEAM_TOKENS, num_beams=BEAM_WIDTH)

    def show(threads: int) -> None:
        answered = speed_table(console, model, chosen, requests, threads=threads, rounds=options.rounds)
        beam_table(console, answered)
        show_targets(console, answered, sides.BEAM_TARGETS)

    per_threads(options, (1,), show)


def latency(console: Console, options: Options) -> None:
    model = smollm2()
    chosen = sides.chosen(sides.latency_sides(engine_options(options)), options.only)
    requests = mix(model, options.requests)
    per_threads(
        options,
        (1,),
        lambda threads: latency_table(console, model, chosen, requests, threads=threads, rounds=options.rounds),
    )


def adapters(console: Console, options: Options) -> None:
    model = smollm2()
    requests = mix(model, options.requests)
    per_threads(
        options,
        (1,),
        lambda threads: adapter_table(
            console, model, requests, engine_options(options), threads=threads, rounds=options.rounds
        ),
    )


def constraints(console: Console, options: Options) -> None:
    model = smollm2()
    requests = mix(model, options.requests)
    sides = constraint_sides(engine_options(options), options.only)
    # Masks are made beside the model: with one core there is no beside, with two there is.
    per_threads(
        options,
        (1, 2),
        lambda threads: constraint_table(console, model, requests, sides, threads=threads, rounds=options.rounds),
    )


def overhead(console: Console, options: Options) -> None:
    per_threads(
        options,
        (1,),
        lambda threads: overhead_table(
            console, (smollm2, t5, gpt_neo), engine_options(options), threads=threads, rounds=options.rounds
        ),
    )


TABLES: dict[str, Callable[[Console, Options], None]] = {
    "smollm2": speed(smollm2, sides.smollm2_sides, sides.SMOLLM2_TARGETS, (1, 2)),
    "t5": speed(t5, sides.t5_sides, sides.T5_TARGETS, (1, 2)),
    "gpt-neo": speed(gpt_neo, sides.gpt_neo_sides, sides.GPT_NEO_TARGETS, (1,)),
    "beams": beams,
    "latency": latency,
    "adapters": adapters,
    "constraints": constraints,
    "overhead": overhead,
}


def engine_options(options: Options) -> dict[str, Any]:
    """What the engine is opened with."""
    return {"max_sequences": options.max_sequences}


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", action="append", choices=tuple(TABLES), help="only this table; may be given several times")
    add("--rounds", type=int, default=3, help="turns of each side (default 3)")
    add(
        "--threads", type=int, nargs="+", help="compute threads, one table for each (default: 1, and 2 for some tables)"
    )
    add("--only", nargs="+", default=[], metavar="WORD", help="only sides whose name holds one of these words")
    add("--requests", type=int, default=64, help="requests that come at once (default 64)")
    add("--max-sequences", type=int, default=64, help="most sequences in a step of the engine (default 64)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
