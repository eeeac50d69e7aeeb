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
            metavar="ARTIFACT|JOB", help="Artifact (folder or URI), or a job file (YAML).", show_default=False
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
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="the first GPU if there is one")
    ] = None,
) -> None:
    """Measure an artifact on validation and test rows, and write a report (Markdown, HTML, JSON)."""
    measure(_job(target, set_, split, max_rows, output), baseline=baseline, device=device)


def measure(job: EvaluateJob, *, baseline: bool, device: str | None = None) -> JobOutcome:
    """Run an evaluation with progress bars, and print what it found."""
    from rayloom.evaluation import run_job

    with _progress() as shown:
        outcome = run_job(job, baseline=baseline, device=device, progress=_Bars(shown))
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


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _Bars:
    """One bar for each part of the evaluation."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if total == 0:
            return
        if what not in self._tasks:
            self._tasks[what] = self._shown.add_task(escape(what), total=total)
        self._shown.update(self._tasks[what], completed=done)


def _print_outcome(outcome: JobOutcome) -> None:
    from rich.table import Table

    from rayloom.evaluation.tables import Comparison, figures, resource_rows

    comparison = Comparison(outcome.result, outcome.baseline)
    random = "  [yellow](random initialisation)[/]" if outcome.result.random_init else ""
    console.print(f"\n[bold]{escape(comparison.title)}[/]{random}\n{escape(comparison.subtitle)}", highlight=False)
    for split in outcome.result.splits:
        before = comparison.before(split)
        table = Table(
            "metric",
            *(["before", "after", "change"] if before else ["value"]),
            title=f"{split.name}, {split.num_rows} rows",
        )
        for row in figures(split, before):
            colour = "" if row.is_better is None else "green" if row.is_better else "red"
            changed = f"[{colour}]{row.change}[/]" if colour else row.change
            table.add_row(row.name, *([row.before, row.value, changed] if before else [row.value]))
        console.print(table)
    costs = Table("resource", "")
    for what, how_much in resource_rows(outcome.result.resources):
        costs.add_row(what, how_much)
    console.print(costs)
    for warning in outcome.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    console.print(f"report: [bold]{escape(str(outcome.paths.html))}[/]  (also report.md, report.json)", highlight=False)
