"""``rayloom compare``: several artifacts or settings on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.evaluate import Bars, progress_bars

if TYPE_CHECKING:
    from rich.table import Table

    from rayloom.evaluation.comparing import System
    from rayloom.evaluation.contest import Contest

console = Console(soft_wrap=True)

_FEW = 3
"""Systems that find room beside each other in a terminal."""


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT...",
            help="Artifacts (folders, URIs) or versions in the registry (qa@3). All are tested against the first.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="File with the rows to answer (JSON, JSONL, CSV, Parquet).", show_default="rows of the first's run"
        ),
    ] = None,
    setting: Annotated[
        list[str],
        typer.Option(
            "--setting",
            "-p",
            metavar="NAME=VALUE,...",
            help="Each artifact with these parameters too, such as num_beams=4 or precision=int8. Repeatable.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    split: Annotated[str, typer.Option(help="Without --data: train, validation or test.")] = "test",
    max_rows: Annotated[int | None, typer.Option(min=1, help="Rows to answer.", show_default="all")] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="Causal model that judges fluency, relevance and coherence.", show_default="none"),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Change a key of evaluation, such as batch_size=8. Repeatable."
        ),
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path("reports/compare"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, for scripts.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="the first GPU if there is one")
    ] = None,
) -> None:
    """Compare artifacts, or one with several settings: quality, latency, speed, memory and size on the same rows.

    Each system runs in a process of its own. Differences to the first come with a paired test. Writes compare.md,
    compare.csv, compare.html and compare.json.

    rayloom compare qa@production qa@4 --data questions.jsonl
    rayloom compare qa@4 -p num_beams=4 -p precision=int8
    """
    from rayloom.config import EvaluationConfig, build_section
    from rayloom.errors import RequestError
    from rayloom.evaluation.comparing import Questions
    from rayloom.evaluation.comparing import compare as measured
    from rayloom.evaluation.contest_pages import write_contest

    if split not in ("train", "validation", "test"):
        raise RequestError(f"--split {split!r}: expected train, validation or test")
    given = {"max_rows": max_rows, "scorer": scorer}
    options = build_section(EvaluationConfig, {name: value for name, value in given.items() if value is not None}, set_)
    systems = _systems(targets, setting)
    questions = Questions.of(targets[0], split=split, file=str(data) if data else None)
    if as_json:
        contest = measured(systems, questions, options, device=device)
    else:
        with progress_bars() as shown:
            contest = measured(systems, questions, options, device=device, progress=Bars(shown))
    paths = write_contest(contest, output)
    if as_json:
        typer.echo(contest.model_dump_json(indent=2, exclude=_ROWS))
        return
    show_contest(contest)
    console.print(
        f"report: [bold]{escape(str(paths.html))}[/]  (also compare.md, compare.csv, compare.json)", highlight=False
    )


_ROWS: Any = {"systems": {"__all__": {"result": {"splits": {"__all__": {"predictions", "row_losses"}}}}}}
"""What a script would have to skip: the file has it."""


def show_contest(contest: Contest) -> None:
    """Print the tables of a comparison."""
    from rayloom.evaluation.contest import cost_table, quality_table
    from rayloom.evaluation.contest_pages import subtitle, warnings

    console.print(f"\n[bold]{escape(contest.headline)}[/]\n{escape(subtitle(contest))}", highlight=False)
    for title, (header, body) in {"quality": quality_table(contest), "cost": cost_table(contest)}.items():
        console.print(as_table(title, header, body))
    for warning in warnings(contest):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def as_table(title: str, header: list[str], body: list[list[str]]) -> Table:
    """A table for terminals: a column for each system while there are few, else a line for each."""
    from rich.table import Table

    lines = [header, *body]
    if len(body) <= _FEW:
        lines = [list(cells) for cells in zip(*lines, strict=True)]
    table = Table(title=title, title_justify="left", show_lines=len(body) > _FEW)
    for name in lines[0]:
        table.add_column(escape(name), overflow="fold")
    for line in lines[1:]:
        # What stands in brackets goes below where space is short.
        table.add_row(*(escape(cell if len(body) <= _FEW else cell.replace(" (", "\n(")) for cell in line))
    return table


def _systems(targets: list[str], settings: list[str]) -> list[System]:
    from rayloom.evaluation.comparing import System

    changes = [_parameters(text) for text in settings]
    return [System(target, parameters) for target in targets for parameters in ({}, *changes)]


def _parameters(text: str) -> dict[str, Any]:
    """``num_beams=4,length_penalty=0.8`` as a mapping."""
    import yaml

    from rayloom.config import parse_yaml
    from rayloom.errors import RequestError

    found: dict[str, Any] = {}
    try:
        # A flow mapping in YAML: lists and quoted commas come for free.
        values = parse_yaml("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict) or not values or None in values.values():
        raise RequestError(f"--setting {text!r}: expected NAME=VALUE, or several with commas, such as num_beams=4")
    found |= {str(name).replace("-", "_"): value for name, value in values.items()}
    return found
