"""``rayloom doctor``: what a run will need, and what is wrong with it, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayloom.cli.doctor_advice import give_advice
from rayloom.cli.figures import duration, gib
from rayloom.cli.options import Overrides
from rayloom.errors import ConfigError

if TYPE_CHECKING:
    from rayloom.config import RunConfig
    from rayloom.data import Columns, Row
    from rayloom.models.sizing import Rows, Sizing

console = Console(soft_wrap=True)

_CHARACTERS_PER_TOKEN = 4.0
_SAMPLED_ROWS = 1000
_SAMPLED_STREAMED_ROWS = 50
"""Of a big corpus; they may be long texts."""


@dataclass(frozen=True)
class Machine:
    """Where the workers will run, as far as this process sees it.

    ``one_machine``: they are all CPUs of this one, whose memory they share.
    """

    on_gpu: bool
    memory_per_worker: int
    memory_source: str
    one_machine: bool = False


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="Config file (YAML); not needed with --models.", show_default=False)
    ] = None,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="Memory of one worker; this machine's where not given, which its workers then share.",
            min=0.1,
        ),
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="Workers have GPUs; as on this machine where not given."),
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="Also show the table of well-known models.")] = False,
) -> None:
    """Estimate memory per worker at each ZeRO stage, disk and time, advise a setting, and warn of known traps.

    Starts nothing, loads no weights, and needs no hub for well-known models.
    """
    if config is None:
        if not models:
            raise ConfigError("name a config file, or ask for the table with --models")
        console.print(variants_table())
        return
    from rayloom.config import load_run_config
    from rayloom.models import check_task
    from rayloom.models.advice import advise
    from rayloom.models.sizing import estimate
    from rayloom.models.traps import traps

    loaded = load_run_config(config, set_)
    hf_config = model_config(loaded)
    rows = train_rows(loaded)
    machine = look_at_machine(loaded, memory, gpu)
    limit, one_machine = machine.memory_per_worker, machine.one_machine
    flops = _rate(loaded, machine)
    sizing = estimate(loaded, hf_config, rows=rows, memory_limit=limit, flops=flops, one_machine=one_machine)
    check_task(loaded.model, sizing.shape.family)
    console.print(model_table(loaded, sizing))
    console.print(memory_table(loaded, sizing, machine))
    console.print(run_table(sizing, rows))
    advice = advise(loaded, sizing.shape, memory_limit=limit, on_gpu=machine.on_gpu, rows=rows, one_machine=one_machine)
    give_advice(console, loaded, advice)
    if models:
        console.print(variants_table())
    problems = traps(loaded, sizing, on_gpu=machine.on_gpu, rows=rows)
    for problem in problems:
        console.print(f"[yellow]warning:[/] {escape(problem)}", highlight=False)
    if not problems:
        console.print("[green]no known trap[/]")
    console.print("All figures are estimates; the formulas stand in rayloom/models/sizing.py.", style="dim")


def model_config(config: RunConfig) -> Any:
    """The model's transformers configuration: as the config says, from the table, or the model's own."""
    from rayloom.models import load_config, resolve_source
    from rayloom.models.random_init import planned_config
    from rayloom.models.sources import is_portable
    from rayloom.models.variants import known_variant

    if config.model.random_init is not None:
        return planned_config(config.model.random_init)
    known = known_variant(config.model.name) if is_portable(config.model.name) else None
    if known is not None:
        return known
    from rayloom.training.continuing import find_start

    start = find_start(config.model.name, note=lambda text: console.print(escape(text), highlight=False))
    if start is not None:
        return model_config(start.config)
    return load_config(resolve_source(config.model, config_only=True))


def train_rows(config: RunConfig) -> Rows | None:
    """Number of train examples and their mean length; None where they lie on a hub out of reach."""
    from rayloom.data import columns_for, load_splits
    from rayloom.errors import HubError
    from rayloom.models.sizing import Rows

    columns = columns_for(config.dataset, config.model.task_type)
    try:
        splits = load_splits(config.dataset, columns)
    except HubError as error:
        console.print(f"[yellow]rows unknown:[/] {escape(str(error))}", highlight=False)
        return None
    rows = splits.train
    sample = rows[: _SAMPLED_ROWS if splits.corpus is None else _SAMPLED_STREAMED_ROWS]
    lengths = [num_characters(columns, row) / _CHARACTERS_PER_TOKEN for row in sample]
    tokens = sum(lengths) / max(1, len(lengths))
    dataset = config.dataset
    if config.model.task_type == "language-modeling":
        blocks = max(1, round(len(rows) * tokens / dataset.max_input_length))
        return Rows(max(len(rows), blocks), min(tokens, dataset.max_input_length))
    limit = dataset.max_input_length + dataset.max_target_length
    # Tokens per character vary from row to row, and templates add some.
    longest = min(limit, round(1.5 * max(lengths, default=limit)) + 16)
    return Rows(len(rows), min(tokens, limit), longest)


def look_at_machine(config: RunConfig, memory: float | None, gpu: bool | None) -> Machine:
    """Device and memory of one worker, given or found here.

    Raises:
        ConfigError: Workers have GPUs, there is none here, and nobody said how much memory one has.
    """
    import psutil
    import torch

    has_gpu = torch.cuda.is_available()
    wanted = config.distributed.use_gpu
    on_gpu = gpu if gpu is not None else (has_gpu if wanted == "auto" else wanted)
    if memory is not None:
        return Machine(on_gpu, int(memory * (1 << 30)), "given")
    if on_gpu and has_gpu:
        return Machine(on_gpu, torch.cuda.get_device_properties(0).total_memory, "this machine's GPU")
    if on_gpu:
        raise ConfigError("workers take GPUs, and there is none here to look at: give its memory, such as --memory 80")
    available = psutil.virtual_memory().available // config.distributed.num_workers
    return Machine(on_gpu, available, "free on this machine now, parted among its workers", one_machine=True)


def model_table(config: RunConfig, sizing: Sizing) -> Table:
    """What is trained."""
    shape = sizing.shape
    start = "random initialisation" if config.model.random_init else "pretrained"
    share = 100 * shape.trainable / shape.parameters
    table = Table(title="model", show_header=False, title_justify="left")
    table.add_row("name", escape(f"{config.model.name} ({start})"))
    table.add_row("family", f"{shape.family.name}, {'seq2seq' if shape.family.seq2seq else 'causal'}")
    table.add_row("parameters", f"{shape.parameters:,}")
    table.add_row("trained", f"{shape.trainable:,} ({share:.3g} %)")
    table.add_row("precision", config.training.precision)
    return table


def memory_table(config: RunConfig, sizing: Sizing, machine: Machine) -> Table:
    """Bytes per worker at each ZeRO stage."""
    workers = config.distributed.num_workers
    limit = f"{gib(machine.memory_per_worker)} ({machine.memory_source})"
    table = Table(
        title=f"memory per worker, {workers} worker{'s' if workers > 1 else ''}, GiB; it has {limit}",
        title_justify="left",
    )
    for name in ("ZeRO", "weights", "grads", "Adam", "activ.", "total", "host", "fits"):
        table.add_column(name, justify="right")
    for each in sizing.stages:
        chosen = each.stage == sizing.chosen_stage
        parts = (each.weights, each.gradients, each.optimizer, each.activations, each.device, each.host)
        fits = "[green]yes[/]" if sizing.fits(each) else "[red]no[/]"
        label = f"> {each.stage}" if chosen else str(each.stage)
        table.add_row(label, *map(gib, parts), fits, style="bold" if chosen else None)
    return table


def run_table(sizing: Sizing, rows: Rows | None) -> Table:
    """Disk, steps and time."""
    amount = sizing.amount
    table = Table(title="disk and time", show_header=False, title_justify="left")
    table.add_row("checkpoints at most", f"{gib(sizing.checkpoint_bytes)} GiB")
    table.add_row("artifact", f"{gib(sizing.artifact_bytes)} GiB")
    if rows is None or amount.total_tokens is None:
        table.add_row("steps", "unknown: the rows could not be read")
        return table
    table.add_row("train examples", f"{rows.num_examples:,} of about {rows.tokens_per_example:.0f} tokens")
    table.add_row("steps", f"{amount.total_steps:,} ({amount.steps_per_epoch:,} per epoch)")
    table.add_row("tokens", f"about {amount.total_tokens:,}")
    if amount.seconds is not None:
        table.add_row("training time", f"about {duration(amount.seconds)} (matrix products timed on this machine)")
    else:
        table.add_row("training time", "unknown: no GPU here to time")
    return table


def variants_table() -> Table:
    """The table of well-known models and the hardware that each needs."""
    from rayloom.models.sizing import sizing_table

    rows = sizing_table()
    table = Table(title="least GPUs: bf16, 4 rows of 512 + 128 tokens each, checkpointing", title_justify="left")
    table.add_column("model", no_wrap=True, min_width=max(len(row.model) for row in rows))
    table.add_column("parameters", justify="right")
    for kind in ("full", "LoRA"):
        for size in rows[0].full:
            table.add_column(f"{kind}, {size} GB", justify="right")
    for row in rows:
        table.add_row(row.model, f"{row.parameters / 1e6:,.0f} M", *row.full.values(), *row.lora.values())
    return table


def _rate(config: RunConfig, machine: Machine) -> float | None:
    import torch

    from rayloom.models.throughput import training_rate

    if machine.on_gpu:
        return training_rate(config.training.precision, device="cuda") if torch.cuda.is_available() else None
    threads = max(1, int(config.distributed.cpus_per_worker))
    precision = "bf16" if config.training.fp16 else config.training.precision
    return training_rate(precision, num_threads=threads)


def num_characters(columns: Columns, row: Row) -> int:
    """Characters of a row that a model sees."""
    if columns.task == "chat":
        return sum(len(message["content"]) for message in columns.conversation(row))
    if columns.task == "language-modeling":
        return len(columns.input_text(row))
    return len(columns.input_text(row)) + len(columns.target_text(row)) + len(columns.context_text(row) or "")
