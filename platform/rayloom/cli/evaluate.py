"""``rayloom evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.options import Overrides

if TYPE_CHECKING:
    from rich.progress import Progress

    from rayloom.config import EvaluateJob
    from rayloom.evaluation import JobOutcome

console = Console(soft_wrap=True)

_SPLITS = ("train", "validation", "test")


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|JOB",
            help="Artifact (folder or URI), version in the registry (qa@3), or a job file (YAML).",
            show_default=False,
        ),
    ],
    set_: Overrides = [],  # noqa: B006 - typer copies it
    split: Annotated[
        list[str],
        typer.Option(help="Split to measure: train, validation or test. Repeatable.", show_default="validation, test"),
    ] = [],  # noqa: B006
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of each split to measure.", show_default="all")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report.", show_default="reports/NAME")
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", "-b", help="Measure the untuned model too, and show both side by side."),
    ] = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="Keep the report with the version in the registry, for its gate.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, for scripts.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="the first GPU if there is one")
    ] = None,
) -> None:
    """Measure an artifact on validation and test rows, and write a report (Markdown, HTML, JSON).

    Other generation parameters on the same rows, as a table of settings, quality and time:
    --set 'evaluation.sweep=[{num_beams: 1}, {num_beams: 4}]'
    """
    job = _job(target, set_, split, max_rows, output)
    if attach:
        check_attachable(job.artifact)
    outcome = measure(job, baseline=baseline, device=device, quiet=as_json)
    if attach:
        from rayloom.evaluation.gating import attach_report
        from rayloom.registry import open_registry

        version = attach_report(open_registry(), job.artifact, outcome.paths.json)
        if not as_json:
            console.print(f"attached to [bold]{escape(version.name)}[/]", highlight=False)
    if as_json:
        typer.echo(
            outcome.result.model_dump_json(indent=2, exclude={"splits": {"__all__": {"predictions", "row_losses"}}})
        )


def check_attachable(target: str) -> None:
    """Refuse before anything is measured what no report can be attached to.

    Raises:
        RequestError: The target is no version of the registry.
    """
    from rayloom.errors import RequestError
    from rayloom.registry import is_reference, resolve

    if not is_reference(target):
        raise RequestError(f"--attach needs a version of the registry, such as qa@3; {target} is none")
    resolve(target)


def measure(job: EvaluateJob, *, baseline: bool, device: str | None = None, quiet: bool = False) -> JobOutcome:
    """Run an evaluation with progress bars, and print what it found unless told to be quiet."""
    from rayloom.evaluation import run_job

    if quiet:
        return run_job(job, baseline=baseline, device=device)
    with progress_bars() as shown:
        outcome = run_job(job, baseline=baseline, device=device, progress=Bars(shown))
    _print_outcome(outcome)
    return outcome


def _job(
    target: str, overrides: list[str], splits: list[str], max_rows: int | None, output: Path | None
) -> EvaluateJob:
    from rayloom.config import EvaluateJob, build_section, load_job
    from rayloom.errors import ConfigError, RequestError

    for name in splits:
        if name not in _SPLITS:
            raise RequestError(f"--split {name!r}: expected {', '.join(_SPLITS)}")
    # Options are overrides by another name; a --set of the same key stands last and wins.
    options = [f"splits=[{', '.join(splits)}]"] if splits else []
    options += [f"evaluation.max_rows={max_rows}"] if max_rows else []
    options += [f"output={str(output)!r}"] if output else []
    if target.endswith((".yaml", ".yml")):
        job = load_job(target, [*options, *overrides])
        if not isinstance(job, EvaluateJob):
            raise ConfigError(
                "this is the config of a training run; evaluate its artifact, or a job with 'artifact: …'",
                path=target,
            )
        return job
    name = Path(target.rstrip("/")).name
    named = Path(target.rstrip("/")).parent.name if name == "artifact" else name
    values: dict[str, Any] = {"artifact": target, "output": str(Path("reports") / (named or "artifact"))}
    return build_section(EvaluateJob, values, [*options, *overrides])


def progress_bars() -> Progress:
    """Bars of one kind for everything that is measured."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class Bars:
    """One bar for each part of the evaluation."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Told how far a part is."""
        if total == 0:
            return
        if what not in self._tasks:
            self._tasks[what] = self._shown.add_task(escape(what), total=total)
        self._shown.update(self._tasks[what], completed=done)


def _print_outcome(outcome: JobOutcome) -> None:
    from rich.table import Table
    from rich.text import Text

    from rayloom.evaluation.breakdowns import breakdowns
    from rayloom.evaluation.tables import Comparison, figure_cells, resource_rows

    comparison = Comparison(outcome.result, outcome.baseline, outcome.significance)
    random = "  [yellow](random initialisation)[/]" if outcome.result.random_init else ""
    console.print(f"\n[bold]{escape(comparison.title)}[/]{random}\n{escape(comparison.subtitle)}", highlight=False)
    for split in outcome.result.splits:
        header, rows = figure_cells(comparison, split)
        table = Table(*header, title=f"{split.name}, {split.num_rows} rows")
        for row, figure in zip(rows, comparison.figures(split), strict=True):
            style = None if figure.is_better is None else "green" if figure.is_better else "red"
            table.add_row(
                *(
                    Text(cell, style if head == "change" and style else "")
                    for head, cell in zip(header, row, strict=True)
                )
            )
        console.print(table)
        for title, head, body in breakdowns(split):
            inner = Table(title=title)
            for name in head:
                inner.add_column(escape(name), overflow="fold")
            for cells in body:
                # Intervals go below their figures, which leaves room for names.
                inner.add_row(*(escape(cell.replace(" (", "\n(")) for cell in cells))
            console.print(inner)
    costs = Table("resource", "")
    for what, how_much in resource_rows(outcome.result.resources):
        costs.add_row(what, how_much)
    console.print(costs)
    for warning in outcome.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    console.print(f"report: [bold]{escape(str(outcome.paths.html))}[/]  (also report.md, report.json)", highlight=False)
