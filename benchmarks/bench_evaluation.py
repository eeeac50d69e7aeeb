"""Rayloom's evaluation against one `generate` after the other: the same model, the same rows, the same answers.

SmolLM2-135M-Instruct as it comes answers the test rows of `jobs/data/wordnet_entities` with the prompts of
`jobs/finetune/smollm2_lora_qa.yaml`, greedy, in fp32. Both sides get rows and give predictions with their scores
(ROUGE, chrF and the rest); perplexity, latency and the report are in neither. One side is `rayloom.evaluation` on the
engine, `--batch-size` answers at once. The other is the loop of most tutorials: tokenise a row, `model.generate`,
decode, score.

The rows are dealt out into parts. Both sides answer a part one after the other, in every other part in the other order;
the ratio is that of the two sides' whole time, the range that of single parts. Every answer is compared. In fp32 a
difference can only come from tokens that are equally likely up to rounding; such rows are printed with their place.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import print_machine, print_verdict
from rich.console import Console
from rich.table import Table

from rayloom.config import EvaluationConfig, load_run_config
from rayloom.data import Columns, Encoder, PromptTemplate, Row, columns_for, load_splits
from rayloom.evaluation.answering import Answering
from rayloom.evaluation.results import Prediction
from rayloom.evaluation.scores import row_scores
from rayloom.generation import Opened, TextGenerator
from rayloom.models import load_model, resolve_source

CONFIG = Path(__file__).resolve().parents[1] / "jobs" / "finetune" / "smollm2_lora_qa.yaml"
TARGET = 5.0
_PART = 100
"""Rows of a part: enough for the engine's batch to be full for most of it."""


@dataclass(frozen=True)
class Work:
    """What both sides are given.

    Attributes:
        generator: Rayloom's side; its model is the other's as well.
        columns: Of the rows.
        rows: To answer.
        new_tokens: Most of an answer.
    """

    generator: TextGenerator
    columns: Columns
    rows: list[Row]
    new_tokens: int


@dataclass
class Side:
    """One of the two.

    Attributes:
        name: For people.
        answer: Predicts rows.
        seconds: Of each part.
        texts: Predictions of all rows so far, in order.
    """

    name: str
    answer: Callable[[Sequence[Row]], list[Prediction]]
    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def turn(self, rows: Sequence[Row]) -> None:
        """Answer a part."""
        start = time.perf_counter()
        predictions = self.answer(rows)
        self.seconds.append(time.perf_counter() - start)
        self.texts += [each.prediction for each in predictions]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    console = Console(soft_wrap=True, width=110)
    print_machine(console, threads=options.threads)
    work = prepared(options.rows)
    console.print(
        f"{work.generator.name}, fp32; {len(work.rows)} rows, at most {work.new_tokens} new tokens; engine: "
        f"{options.batch_size} answers at once",
        highlight=False,
    )
    sides = [
        Side("Rayloom's evaluation", functools.partial(with_engine, work, options.batch_size)),
        Side("generate, row by row", functools.partial(with_generate, work)),
    ]
    warm_up(sides, work.rows[:2])
    take_turns(console, sides, work.rows, options.part)
    show(console, sides, work)


def prepared(num_rows: int) -> Work:
    """The untuned model, with prompts as training makes them."""
    config = load_run_config(CONFIG, [f"dataset.max_test_rows={num_rows}"])
    columns = columns_for(config.dataset, config.model.task_type)
    loaded = load_model(resolve_source(config.model))
    template = PromptTemplate.for_run(
        config.dataset,
        config.model.task_type,
        seq2seq=loaded.family.seq2seq,
        has_chat_template=loaded.tokenizer.chat_template is not None,
    )
    limits = {
        "max_input_length": config.dataset.max_input_length,
        "max_target_length": config.dataset.max_target_length,
    }
    encoder = Encoder(loaded.tokenizer, template, **limits)
    opened = Opened("SmolLM2-135M-Instruct", loaded, encoder, config.generation)
    generator = TextGenerator.from_opened(opened, device=torch.device("cpu"))
    rows = list(load_splits(config.dataset, columns).rows("test"))
    new_tokens = config.generation.max_new_tokens
    assert new_tokens is not None
    return Work(generator, columns, rows, new_tokens)


def with_engine(work: Work, batch_size: int, rows: Sequence[Row]) -> list[Prediction]:
    """As `rayloom evaluate` answers rows and scores them."""
    answering = Answering(work.generator, work.columns, EvaluationConfig(batch_size=batch_size), {})
    return answering.answers(rows, {}, lambda _: lambda _: None).predictions


def with_generate(work: Work, rows: Sequence[Row]) -> list[Prediction]:
    """As tutorials do it: one row, one `generate`."""
    encoder, model = work.generator.encoder, work.generator.model
    tokenizer, template = encoder.tokenizer, work.generator.template
    options = {"max_new_tokens": work.new_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    texts, asked = [], [template.input_of(row, work.columns) for row in rows]
    for each in asked:
        ids = torch.tensor([encoder.prompt_ids(each)])
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), eos_token_id=tokenizer.eos_token_id, **options
            )
        texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    references = [template.target_of(row, work.columns) for row in rows]
    scores = row_scores(texts, references)
    return [
        Prediction(row=row, input=each.text, reference=reference, prediction=text, scores=score)
        for row, (each, reference, text, score) in enumerate(zip(asked, references, texts, scores, strict=True))
    ]


def warm_up(sides: Sequence[Side], rows: Sequence[Row]) -> None:
    """Let both sides do what they do only once."""
    for side in sides:
        side.answer(rows)


def take_turns(console: Console, sides: Sequence[Side], rows: Sequence[Row], size: int) -> None:
    """Both sides answer part after part."""
    for number, start in enumerate(range(0, len(rows), size)):
        part = rows[start : start + size]
        for side in sides[:: -1 if number % 2 else 1]:
            side.turn(part)
        told = ", ".join(f"{side.name} {side.seconds[-1]:.0f} s" for side in sides)
        console.print(f"  rows {start + 1} to {start + len(part)}: {told}", style="dim", highlight=False)


def show(console: Console, sides: Sequence[Side], work: Work) -> None:
    """The table, the ratio with its target, and whether the answers are the same."""
    ours, theirs = sides
    table = Table("side", "seconds", "rows/s", "seconds of a part")
    for side in sides:
        total = sum(side.seconds)
        spread = f"{min(side.seconds):.1f}-{max(side.seconds):.1f}"
        table.add_row(side.name, f"{total:.1f}", f"{len(work.rows) / total:.2f}", spread)
    console.print(table)
    ratios = [other / own for own, other in zip(ours.seconds, theirs.seconds, strict=True)]
    whole = sum(theirs.seconds) / sum(ours.seconds)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"
    print_verdict(
        console,
        f"evaluation of {len(work.rows)} rows, faster than one `generate` after the other",
        f"{whole:.2f} x ({spread})",
        f"≥ {TARGET:g} x",
        met=whole >= TARGET,
    )
    _show_equality(console, ours.texts, theirs.texts)


def _show_equality(console: Console, ours: Sequence[str], theirs: Sequence[str]) -> None:
    other = [row for row, (one, two) in enumerate(zip(ours, theirs, strict=True)) if _stripped(one) != _stripped(two)]
    share = 1 - len(other) / len(ours)
    print_verdict(console, "answers that are equal", f"{share:.1%}", "100%", met=not other)
    for row in other:
        console.print(f"  row {row}: {ours[row]!r}\n      not {theirs[row]!r}", highlight=False, markup=False)


def _stripped(text: Any) -> str:
    """Both sides' decoding may leave white space at the ends."""
    return str(text).strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=500, help="rows to answer (default 500: about a quarter of an hour)")
    add("--part", type=int, default=_PART, help=f"rows that a side answers in a turn (default {_PART})")
    add("--batch-size", type=int, default=32, help="evaluation.batch_size (default 32)")
    add("--threads", type=int, default=2, help="torch threads of both sides (default 2)")
    add("--quick", action="store_true", help="40 rows in two parts")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.part = 40, 20
    return options


if __name__ == "__main__":
    main()
