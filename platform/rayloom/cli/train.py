"""``rayloom train``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.options import ConfigPath, Overrides

if TYPE_CHECKING:
    from rayloom.launch import Cluster, Prepared, Run

console = Console(soft_wrap=True)


def train(
    config: ConfigPath,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this interrupted run.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the workers' own output too.")] = False,
) -> None:
    """Fine-tune a model as the config says, and publish it as an artifact.

    Runs on the Ray cluster that RAY_ADDRESS names, or on a local Ray that it starts and stops.
    """
    from rayloom.config import load_run_config

    loaded = load_run_config(config, [*set_, *([f"output.run_name={json.dumps(resume)}"] if resume else [])])
    from rayloom.launch import TerminalSink, run_training

    with TerminalSink(console) as sink:
        outcome = run_training(loaded, sink=sink, announce=announce, resume=resume is not None, verbose=verbose)
    console.print(f"\nrun page: {escape(outcome.run.path)}/report.html", highlight=False)
    console.print(f"artifact: [bold]{escape(outcome.artifact)}[/]")
    console.print(f"next: rayloom evaluate {outcome.artifact}   |   rayloom serve {outcome.artifact}", highlight=False)


def announce(prepared: Prepared, cluster: Cluster, run: Run) -> None:
    """What is about to happen: device, model, rows, one sample."""
    config = prepared.config
    splits = prepared.splits
    random = "  (random initialisation: it starts knowing nothing)" if config.model.random_init else ""
    lines = {
        "run": run.path,
        "ray": cluster.describe(),
        "workers": _workers_line(prepared),
        "model": f"{config.model.name} ({prepared.family.name}){random}",
        "rows": f"{len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
        "read": splits.how,
        "tokens": f"{int(prepared.train.lengths.sum())} in train, longest row {int(prepared.train.lengths.max())}",
    }
    for name, text in lines.items():
        console.print(f"{name:>8}  {text}", highlight=False, markup=False)
    console.print(f"  sample  {prepared.sample()}", highlight=False, markup=False)
    for warning in prepared.warnings():
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def _workers_line(prepared: Prepared) -> str:
    workers, training = prepared.config.distributed, prepared.config.training
    backend = f"DeepSpeed ZeRO {workers.stage}" if workers.uses_deepspeed else "plain PyTorch"
    rows = prepared.config.global_batch_size
    lora = f", LoRA r={prepared.config.lora.r}" if prepared.config.lora else ""
    return f"{workers.num_workers} x {backend}, {training.precision}{lora}, {rows} rows per step"
