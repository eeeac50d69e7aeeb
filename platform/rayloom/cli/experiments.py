"""``rayloom experiments``: tables that one command measures and writes as pages."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.options import Overrides

if TYPE_CHECKING:
    from rayloom.evaluation import Progress
    from rayloom.launch.experiments import Cell, Plan, Watch

experiments_app = typer.Typer(
    help="Tables that one command measures and writes as pages: learning rates, beam widths, models, workers.\n\n"
    "An experiment is a file such as jobs/experiments/learning_rate.yaml. Its cells are real training runs and real "
    "evaluations; what is finished is not done again.",
    no_args_is_help=True,
)
console = Console(soft_wrap=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Experiment (YAML).", show_default=False)]
Quick = Annotated[
    bool, typer.Option("--quick", help="Few rows and steps, and only the ends of what varies: shows that it works.")
]


@experiments_app.command()
def run(
    file: File,
    quick: Quick = False,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    device: Annotated[
        str | None, typer.Option(help="Where results are measured.", show_default="the first GPU if there is one")
    ] = None,
) -> None:
    """Train and measure what is not done yet, and write the page with its numbers (CSV) and its plot (SVG).

    The page is written anew after each cell. After an interruption the same command goes on.
    """
    from rayloom.launch.experiments import plan_experiment, run_experiment, write_document

    plan = plan_experiment(file, set_, quick=quick)
    _print_plan(plan)
    command = _command(file, set_, quick=quick)
    records = run_experiment(plan, _watch(), command=command, device=device)
    paths = write_document(plan, records, command=command)
    _print_table(plan)
    console.print(f"page: [bold]{escape(str(paths.page))}[/]  (also {paths.numbers.name})", highlight=False)


@experiments_app.command()
def show(file: File, quick: Quick = False, set_: Overrides = []) -> None:  # noqa: B006
    """What an experiment consists of, what is done already, and the table so far. Runs nothing."""
    from rayloom.launch.experiments import plan_experiment

    plan = plan_experiment(file, set_, quick=quick)
    _print_plan(plan)
    _print_table(plan)


def _print_plan(plan: Plan) -> None:
    from rayloom.launch.experiments import ExperimentStore

    store = ExperimentStore(plan.root)
    done = sum(store.is_done(cell.key) for cell in plan.cells)
    trainings = {cell.training_key for cell in plan.cells if cell.training is not None}
    trained = sum(store.trained(key) is not None for key in trainings)
    console.print(
        f"[bold]{escape(plan.experiment.title)}[/]: {len(plan.cells)} cells, {done} of them done; "
        f"{len(trainings)} training runs, {trained} of them done; kept in {escape(str(plan.root))}",
        highlight=False,
    )


def _print_table(plan: Plan) -> None:
    from rayloom.cli.compare import as_table
    from rayloom.launch.experiments import ExperimentStore, headline, table, table_rows

    rows = table_rows(plan, ExperimentStore(plan.root).records(plan))
    header, body = table(plan, rows)
    console.print(as_table(plan.experiment.title, header, body))
    told = headline(plan, rows)
    if told:
        console.print(f"[bold]{escape(told)}[/]", highlight=False)


def _watch() -> Watch:
    from rayloom.cli.evaluate import Bars, progress_bars
    from rayloom.cli.train import announce
    from rayloom.launch import TerminalSink
    from rayloom.launch.experiments import Watch

    def cell(each: Cell, number: int, total: int) -> None:
        console.rule(escape(f"{number} of {total}: {each.name}"))

    @contextlib.contextmanager
    def measuring() -> Iterator[Progress | None]:
        with progress_bars() as shown:
            yield Bars(shown)

    return Watch(cell=cell, training=lambda: TerminalSink(console), announce=announce, measuring=measuring)


def _command(file: Path, overrides: Sequence[str], *, quick: bool) -> str:
    """What makes the page, as one would type it."""
    sets = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["rayloom", "experiments", "run", str(file), *(["--quick"] if quick else []), *sets])
