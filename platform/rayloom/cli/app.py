"""All commands, and how their errors end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.compare import compare
from rayloom.cli.config import config_app
from rayloom.cli.demo import demo
from rayloom.cli.doctor import doctor
from rayloom.cli.evaluate import evaluate
from rayloom.cli.experiments import experiments_app
from rayloom.cli.generate import generate
from rayloom.cli.init import init
from rayloom.cli.keys import keys_app
from rayloom.cli.merge import merge
from rayloom.cli.models import models_app
from rayloom.cli.publish import publish
from rayloom.cli.runs import runs_app
from rayloom.cli.serve import serve
from rayloom.cli.submit import submit
from rayloom.cli.sweep import sweep_app
from rayloom.cli.train import train
from rayloom.errors import RayloomError

app = typer.Typer(
    name="rayloom",
    help="Fine-tune, measure and serve text-generation models (T5, GPT-2 / GPT-Neo, LLaMA + LoRA) on Ray.\n\n"
    "Start with: rayloom init qa --model t5-small --task question-answering",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(init)
app.command()(doctor)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(generate)
app.command()(serve)
app.command()(merge)
app.command()(publish)
app.command()(submit)
app.command()(demo)
app.add_typer(sweep_app, name="sweep")
app.add_typer(config_app, name="config")
app.add_typer(runs_app, name="runs")
app.add_typer(models_app, name="models")
app.add_typer(experiments_app, name="experiments")
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Entry point: our own errors become one clear message and an exit code (2 for what the caller can mend)."""
    if not Path("/dev/nvidiactl").exists():
        # DeepSpeed, which transformers imports, would warn that it finds no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        app()
    except RayloomError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
