"""``rayloom models``: versions of named models, and what is in production."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from rayloom.cli.model_tables import diff_table, models_table, overview, verdict_table, versions_table

if TYPE_CHECKING:
    from rayloom.registry import Registry, Verdict

models_app = typer.Typer(
    help="Keep versions of named models, and decide which one is in production.\n\n"
    "A version is NAME@NUMBER, or NAME@STAGE for the newest in a stage (candidate, production, archived). Wherever a "
    "command takes an artifact it takes these too: rayloom generate qa@production.\n\n"
    "The usual way: register an artifact, rayloom evaluate NAME@NUMBER --attach, promote.",
    no_args_is_help=True,
)
console = Console(soft_wrap=True)


class Target(StrEnum):
    """Stages that a version can be promoted to."""

    CANDIDATE = "candidate"
    PRODUCTION = "production"


Root = Annotated[
    str | None,
    typer.Option(
        "--registry",
        envvar="RAYLOOM_REGISTRY",
        help="Folder of the registry; mlflow+http(s)://… or mlflow+sqlite:///… for one in MLflow.",
        show_default="~/.rayloom/registry",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="A version, such as qa@3 or qa@candidate.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.", show_default=False)]


@models_app.command()
def register(
    name: Name,
    artifact: Annotated[str, typer.Argument(help="Artifact of a run (folder or URI).", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option(help="report.json of rayloom evaluate (or its folder) on this artifact.", show_default=False),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="NAME@VERSION", help="The version that its training started from.", show_default="found out"
        ),
    ] = None,
    note: Annotated[str, typer.Option(help="What people should know about it.")] = "",
    copy: Annotated[
        bool, typer.Option("--copy/--no-copy", help="Keep a copy of the artifact, or leave it where it is.")
    ] = True,
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make an artifact the next version of a model, with where it comes from.

    An artifact that is a version already stays that version; --report then adds or replaces its report.
    """
    store = _open(registry)
    version = store.register(name, artifact, copy=copy, parent=parent, note=note)
    if report is not None:
        from rayloom.evaluation.gating import attach_report

        version = attach_report(store, version.name, report)
    if as_json:
        typer.echo(version.model_dump_json(indent=2))
        return
    console.print(f"registered: [bold]{escape(version.name)}[/]  ({version.location})", highlight=False)
    mend = "" if version.report else f"rayloom evaluate {version.name} --attach   |   "
    console.print(f"next: {mend}rayloom models promote {version.name}", highlight=False)


@models_app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this model's versions.", show_default="all models")
    ] = None,
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """All models, or all versions of one with their stages and metrics."""
    store = _open(registry)
    if name is None:
        models = store.models()
        if as_json:
            _print_json([model.model_dump(mode="json") for model in models])
        else:
            empty = f"no models in {escape(store.place)}: add one with rayloom models register"
            console.print(models_table(models) if models else empty)
        return
    versions = store.versions(name)
    if as_json:
        _print_json([version.model_dump(mode="json") for version in versions])
    else:
        console.print(versions_table(name, versions) if versions else f"'{escape(name)}' has no versions yet")


@models_app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="A version; the one in production.", show_default=False)
    ],
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """One version: where it comes from, its metrics, what the gate said, and the model's history."""
    store = _open(registry)
    version = store.get(reference)
    verdicts, history = store.verdicts(version.name), store.history(version.model)
    if as_json:
        _print_json(
            {
                "version": version.model_dump(mode="json"),
                "gate": store.gate(version.model).model_dump(mode="json"),
                "verdicts": [_verdict_json(each) for each in verdicts],
                "history": [each.model_dump(mode="json") for each in history],
            }
        )
        return
    console.print(overview(version))
    if verdicts:
        console.print(verdict_table(verdicts[-1]))
    console.print("history", style="bold")
    for change in history:
        which = f"{version.model}@{change.version}" if change.version else version.model
        console.print(f"{change.at}  {which}  {change.action}  {change.detail}  ({change.who})", highlight=False)


@models_app.command()
def diff(
    one: Reference,
    two: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Another.", show_default=False)],
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """What differs between two versions: data, code, config and metrics."""
    from rayloom.registry.diff import differences

    store = _open(registry)
    first, second = store.get(one), store.get(two)
    found = differences(first, second)
    if as_json:
        rows = [
            {"part": each.part, "key": each.key, first.name: each.one, second.name: each.two, "change": each.change}
            for each in found
        ]
        _print_json(rows)
        return
    same = f"{first.name} and {second.name} have equal lineage, config and metrics"
    console.print(diff_table(first.name, second.name, found) if found else same)


@models_app.command()
def gate(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of the new gate.", show_default="show the gate there is")
    ] = None,
    registry: Root = None,
) -> None:
    """Show or set what a model's versions have to pass before production.

    Keys: split, metrics, against_production, golden_replay, max_latency_p50_s, max_latency_p95_s; see docs/registry.md.
    """
    from rayloom.config import GateConfig, dump_yaml, load_section

    store = _open(registry)
    if file is not None:
        store.set_gate(name, load_section(GateConfig, file))
    typer.echo(dump_yaml(store.gate(name)), nl=False)


@models_app.command()
def check(
    reference: Reference,
    device: Annotated[
        str | None, typer.Option(help="Where golden prompts are replayed.", show_default="GPU or CPU")
    ] = None,
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """Ask the gate about a version without promoting it. Exit code 1 where it does not pass."""
    verdict = _judge(_open(registry), reference, device)
    if as_json:
        _print_json(_verdict_json(verdict))
    else:
        console.print(verdict_table(verdict))
    raise typer.Exit(0 if verdict.passed else 1)


@models_app.command()
def promote(
    reference: Reference,
    to: Annotated[Target, typer.Option(help="Stage. Only production asks the gate.")] = Target.PRODUCTION,
    device: Annotated[
        str | None, typer.Option(help="Where golden prompts are replayed.", show_default="GPU or CPU")
    ] = None,
    registry: Root = None,
    as_json: AsJson = False,
) -> None:
    """Put a version into production if it passes the model's gate; the one there is archived.

    A version that does not pass is refused, and so is one whose artifact, rival or gate changed while it was judged.
    """
    store = _open(registry)
    if to is Target.CANDIDATE:
        version = store.nominate(reference)
    else:
        check_not_there(store, reference)
        verdict = _judge(store, reference, device)
        if not as_json:
            console.print(verdict_table(verdict))
        version = store.promote(verdict.id)
    if as_json:
        typer.echo(version.model_dump_json(indent=2))
    else:
        console.print(f"[bold]{escape(version.name)}[/] is {version.stage} now", highlight=False)


@models_app.command()
def rollback(name: Name, registry: Root = None, as_json: AsJson = False) -> None:
    """Bring the previous production version back; the one there is archived. Nothing is measured again."""
    store = _open(registry)
    current = store.get(f"{name}@production")
    version = store.rollback(name, expected=current.version)
    if as_json:
        typer.echo(version.model_dump_json(indent=2))
    else:
        console.print(
            f"[bold]{escape(version.name)}[/] is production again, in place of {current.name}", highlight=False
        )


@models_app.command()
def archive(reference: Reference, registry: Root = None) -> None:
    """Put a version away. Its artifact stays; the version in production cannot be archived."""
    version = _open(registry).archive(reference)
    console.print(f"[bold]{escape(version.name)}[/] is archived", highlight=False)


def check_not_there(store: Registry, reference: str) -> None:
    """Refuse before anything is judged what is in production already.

    Raises:
        RegistryError: It is.
    """
    from rayloom.errors import RegistryError

    version = store.get(reference)
    if version.stage == "production":
        raise RegistryError(f"{version.name} is in production already")


def _open(place: str | None) -> Registry:
    from rayloom.registry import open_registry

    return open_registry(place)


def _judge(store: Registry, reference: str, device: str | None) -> Verdict:
    from rayloom.evaluation.gating import judge

    return judge(store, reference, device=device)


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {**verdict.model_dump(mode="json"), "passed": verdict.passed}


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
