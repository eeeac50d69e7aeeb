"""What bf16 and int8 weights cost in quality and take in memory, on SmolLM2-135M-Instruct as it comes.

For each precision the engine answers the same questions (`jobs/data/wordnet_entities`, greedy) and reads the same novel
(`jobs/data/austen`, windows of 256 tokens, each token predicted from those before it in its window). Printed: the share
of answers that are equal to fp32's, ROUGE-L against the references, perplexity; how far the predictions are from fp32's
(Kullback-Leibler divergence in nats, mean per token, and how often the likeliest token is the same); and the bytes of
the weights and of the cache per token.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from measure import DATA, SMOLLM2, print_machine
from rich.console import Console
from rich.table import Table

from rayloom.config import WeightPrecision
from rayloom.data import PromptInput
from rayloom.engine import Engine
from rayloom.engine.assembling import assemble
from rayloom.engine.batch import StepBatch
from rayloom.engine.blocks import BLOCK, blocks_for
from rayloom.engine.plan import Plan, Span
from rayloom.engine.request import EngineRequest, Group, Params, Sequence
from rayloom.evaluation.metrics import text_metrics
from rayloom.generation import TextGenerator

WINDOW = 256


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    console = Console(width=140)
    torch.set_num_threads(options.threads)
    print_machine(console, threads=options.threads)
    rows = [json.loads(line) for line in (DATA / "wordnet_entities" / "test.jsonl").open(encoding="utf-8")]
    rows = rows[: options.questions]
    console.print(f"{len(rows)} questions; {options.windows} windows of {WINDOW} tokens", highlight=False)
    heads = (
        "precision",
        "equal to fp32",
        "ROUGE-L",
        "perplexity",
        "divergence",
        "same likeliest",
        "products",
        "cache/token",
    )
    table = Table(*heads)
    reference: Reading | None = None
    for precision in get_args(WeightPrecision):
        reading = _read(precision, rows, options.windows)
        reference = reference or reading
        table.add_row(precision, *_columns(reading, reference, rows))
    console.print(table)


@dataclass(frozen=True)
class Reading:
    """What one precision wrote and predicted.

    Attributes:
        answers: To the questions.
        logprobs_NTV: Of every token of the vocabulary after each token of each window.
        tokens_NT: The windows.
        weight_bytes: Of all packed products.
        cache_bytes: Per token.
    """

    answers: list[str]
    logprobs_NTV: torch.Tensor  # noqa: N815 - the shape
    tokens_NT: torch.Tensor  # noqa: N815
    weight_bytes: int
    cache_bytes: float


def _read(precision: WeightPrecision, rows: list[dict[str, str]], num_windows: int) -> Reading:
    generator = TextGenerator(SMOLLM2["model"]["name"], precision=precision)
    asked = [PromptInput(row["question"]) for row in rows]
    outputs = generator.run(asked, {"max_new_tokens": 32}, batch_size=32)
    novel = (DATA / "austen" / "test.txt").read_text(encoding="utf-8")
    ids = generator.encoder.tokenizer.encode(novel, add_special_tokens=False)
    windows = [ids[start : start + WINDOW] for start in range(0, num_windows * WINDOW, WINDOW)]
    engine: Any = generator.generator.service._engine
    return Reading(
        [output.text for output in outputs],
        torch.stack([_logits(engine, window).log_softmax(-1) for window in windows]),
        torch.tensor(windows),
        _weight_bytes(engine),
        engine.runner.cache.shape.block_bytes / BLOCK,
    )


def _columns(reading: Reading, reference: Reading, rows: list[dict[str, str]]) -> tuple[str, ...]:
    equal = sum(map(operator.eq, reading.answers, reference.answers)) / len(rows)
    rouge = text_metrics(reading.answers, [row["answer"] for row in rows])["rougeL"]
    targets = reading.tokens_NT[:, 1:, None]
    loss = -reading.logprobs_NTV[:, :-1].gather(-1, targets).mean().item()
    expected = reference.logprobs_NTV
    pairs = zip(expected, reading.logprobs_NTV, strict=True)
    divergence = statistics.fmean(((p.exp() * (p - q)).sum(-1).mean().item()) for p, q in pairs)
    likeliest = (expected.argmax(-1) == reading.logprobs_NTV.argmax(-1)).float().mean().item()
    weights, cache = f"{reading.weight_bytes / 2**20:.0f} MiB", f"{reading.cache_bytes / 1024:.1f} KiB"
    quality = (f"{equal:.0%}", f"{rouge:.1%}", f"{math.exp(loss):.2f}", f"{divergence:.4f}", f"{likeliest:.1%}")
    return (*quality, weights, cache)


def _logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Logits ``(T, V)`` of all positions of a text, in an engine that is idle."""
    sequence = Sequence(0, ids, blocks=list(range(blocks_for(len(ids)))), slot=0)
    request = EngineRequest(start_ids=tuple(ids), params=Params(max_new_tokens=1))
    group = Group(0, request, 0.0, sequences=[sequence])
    plan = Plan(encode=(), spans=(Span(group, sequence, 0, len(ids), True),), copies=(), preempted=(), admitted=())
    batch: StepBatch = assemble(plan, lambda _: -1, torch.device("cpu"))
    with torch.inference_mode():
        every_row = torch.arange(len(ids))
        return engine.runner.run(StepBatch(**{**vars(batch), "logit_rows_R": every_row}))


def _weight_bytes(engine: Engine) -> int:
    """Bytes of all packed products of the runner."""
    seen: dict[int, int] = {}
    _collect(engine.runner, seen, set())
    return sum(seen.values())


def _collect(item: Any, found: dict[int, int], seen: set[int]) -> None:
    if id(item) in seen or isinstance(item, torch.Tensor | str | int | float | Path):
        return
    seen.add(id(item))
    if hasattr(item, "resident_bytes") and hasattr(item, "out_features"):
        found[id(item)] = item.resident_bytes
        return
    inside = item if isinstance(item, list | tuple) else getattr(item, "__dict__", {}).values()
    for each in inside:
        _collect(each, found, seen)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=48, help="questions to answer (default 48)")
    parser.add_argument("--windows", type=int, default=16, help="windows of the novel to read (default 16)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
