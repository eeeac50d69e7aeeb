"""``rayloom sweep``: many training runs of one config, and the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from rayloom.cli.models import Root
from rayloom.cli.options import Overrides

if TYPE_CHECKING:
    from rayloom.launch.sweeping.ranking import Results

console = Console(soft_wrap=True)


class FileOrCommand(TyperGroup):
    """``rayloom sweep FILE`` is short for ``rayloom sweep run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` where no command is named."""
        known = {*self.commands, "--help", "-h"}
        if args and args[0] not in known:
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = typer.Typer(
    cls=FileOrCommand,
    help="Train many variants of a config, and find the best: rayloom sweep jobs/sweep/FILE.yaml\n\n"
    "The same command goes on with a sweep that was interrupted.",
    no_args_is_help=True,
)
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="Folder or URI of the sweep.", show_default=False)]


@sweep_app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Sweep file, such as jobs/sweep/….yaml.", show_default=False)],
    set_: Overrides = [],  # noqa: B006 - typer copies it
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try trials again that failed for good; they go on where they were.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of Ray's processes too.")] = False,
) -> None:
    """Run a sweep to its report, or go on with it. `rayloom sweep FILE` does the same.

    Runs on the Ray cluster that RAY_ADDRESS names, or on a local Ray that it starts and stops.
    """
    from rayloom.config import load_sweep

    sweep = load_sweep(file, set_)
    from rayloom.launch.sweeping.running import run_sweep
    from rayloom.launch.sweeping.terminal import SweepTerminal

    outcome = run_sweep(sweep, show=SweepTerminal(console), retry_failed=retry_failed, verbose=verbose)
    show_results(outcome.results)
    console.print(f"\nreport: [bold]{escape(outcome.paths.html)}[/]  (also sweep.json, sweep.csv)", highlight=False)
    console.print(
        f"next: rayloom train {outcome.paths.best}   |   rayloom sweep promote {outcome.folder} --name NAME",
        highlight=False,
        markup=False,
    )


@sweep_app.command()
def show(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """The trials of a sweep that have ended, ranked; also while it runs."""
    from rayloom.launch.sweeping.promoting import read_results

    results = read_results(folder)
    if as_json:
        import json

        from rayloom.launch.sweeping.results import document

        typer.echo(json.dumps(document(results), indent=2))
    elif results.trials:
        show_results(results)
    else:
        console.print(f"no trial of {escape(folder)} has ended yet")


@sweep_app.command()
def promote(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Name of the model in the registry.", show_default=False)],
    trial: Annotated[
        str | None, typer.Option(help="Such as trial-003.", metavar="TRIAL", show_default="the best")
    ] = None,
    note: Annotated[str, typer.Option(help="What people should know about it.")] = "",
    registry: Root = None,
) -> None:
    """Put the best trial's artifact into the registry, as the next version of a model.

    Production is a further step, behind the model's gate: rayloom models promote.
    """
    from rayloom.launch.sweeping.promoting import promote as register
    from rayloom.launch.sweeping.promoting import read_results
    from rayloom.registry import open_registry

    version = register(read_results(folder), open_registry(registry), name=name, trial=trial, note=note)
    console.print(f"registered: [bold]{escape(version.name)}[/]  ({escape(version.note)})", highlight=False)
    console.print(
        f"next: rayloom evaluate {version.name} --attach   |   rayloom models promote {version.name}",
        highlight=False,
        markup=False,
    )


def show_results(results: Results) -> None:
    """Print who won, and the table."""
    from rayloom.launch.sweeping.terminal import results_table

    console.print()
    console.print(results_table(results))
    if results.finished:
        console.print(f"[bold]{escape(results.headline)}[/]", highlight=False)
    console.print(results.counts, highlight=False, markup=False)
