"""``rayloom runs``: what has been trained, what is training, and how it went."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rayloom.launch.tracking.folder import RunFolder
    from rayloom.launch.tracking.status import RunStatus

runs_app = typer.Typer(help="List training runs, or show one.", no_args_is_help=True)
console = Console(soft_wrap=True)

_COLORS = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow"}

Storage = Annotated[
    str, typer.Option("--storage", help="Folder or URI of the runs (output.storage_path of their configs).")
]


@runs_app.command("list")
def list_(storage: Storage = "runs") -> None:
    """A table of all runs: state, step, loss, best validation figure.

    A run whose driver is gone without a word is shown as interrupted: go on with it by `rayloom train --resume`.
    """
    from rayloom.launch.tracking.status import list_runs

    found = [status for _, status in list_runs(storage)]
    table = Table("run", "state", "step", "epoch", "loss", "best", "last sign of life")
    for status in sorted(map(judged, found), key=lambda each: each.updated, reverse=True):
        table.add_row(escape(status.name), *figures(status))
    console.print(table if found else f"no runs in {escape(storage)}")


@runs_app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name of the run.", show_default=False)], storage: Storage = "runs"
) -> None:
    """One run: its state, its evaluations, its resumptions, and where its files lie."""
    from rayloom.errors import ConfigError
    from rayloom.launch.tracking.status import NOTES, PAGE, list_runs, read_history, read_lines

    found = {status.name: (folder, status) for folder, status in list_runs(storage)}
    if run not in found:
        known = f"there are {', '.join(found)}" if found else "there are none"
        raise ConfigError(f"there is no run '{run}' in {storage}: {known}")
    folder, status = found[run]
    console.print(overview(folder, judged(status), page=PAGE))
    evaluations = [record for record in read_history(folder) if record["kind"] == "evaluation"]
    if evaluations:
        console.print(evaluations_table(evaluations))
    for note in read_lines(folder, NOTES):
        console.print(f"{note['time']}  {note['text']}", highlight=False, markup=False)


def judged(status: RunStatus) -> RunStatus:
    """With the state as this machine sees it now."""
    return status.judged(host=socket.gethostname(), now=time.time())


def figures(status: RunStatus) -> list[str]:
    """Cells of a run in the list, after its name."""
    color = _COLORS.get(status.state, "dim")
    best = "" if status.best is None else f"{status.metric} {status.best:.4f} at step {status.best_step}"
    return [
        f"[{color}]{status.state}[/]",
        f"{status.step}/{status.total_steps}" if status.total_steps else "",
        f"{status.epoch:.2f}" if status.total_steps else "",
        "" if status.loss is None else f"{status.loss:.4f}",
        best,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.updated)) if status.updated else "",
    ]


def overview(folder: RunFolder, status: RunStatus, *, page: str) -> Table:
    """The run in figures, and where things are."""
    names = ("state", "step", "epoch", "loss", "best", "last sign of life")
    table = Table(title=escape(status.name), show_header=False, title_justify="left")
    for name, text in zip(names, figures(status), strict=True):
        table.add_row(name, text)
    if status.error:
        table.add_row("error", escape(status.error))
    table.add_row("folder", escape(folder.path))
    if folder.read(page) is not None:
        table.add_row("page", escape(f"{folder.path}/{page}"))
    if status.artifact:
        table.add_row("artifact", escape(status.artifact))
    return table


def evaluations_table(evaluations: list[dict[str, Any]]) -> Table:
    """Validation figures by epoch."""
    names = list(dict.fromkeys(name for record in evaluations for name in record["metrics"]))
    table = Table("epoch", "step", *names)
    for record in evaluations:
        values = (record["metrics"].get(name) for name in names)
        cells = ("" if value is None else f"{value:.4f}" for value in values)
        table.add_row(str(record["epoch"]), str(record["step"]), *cells)
    return table
