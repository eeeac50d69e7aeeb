"""``rayloom keys``: who may use a served model."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rayloom.serving.keys import ApiKey, KeyStore

keys_app = typer.Typer(
    help="API keys of `rayloom serve --keys FILE`: make, list and revoke them.\n\n"
    "The file holds hashes only. A server that runs notices a change of it within seconds.",
    no_args_is_help=True,
)
console = Console()

KeysPath = Annotated[Path, typer.Option("--keys", metavar="FILE", help="File of keys (YAML).")]
Name = Annotated[str, typer.Argument(help="Who the key is for.", show_default=False)]
_DEFAULT = Path("keys.yaml")


@keys_app.command()
def create(
    name: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="generate or metrics. Repeatable.", show_default="generate")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests.", show_default=False)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Most tokens, prompts and answers together.", show_default=False)
    ] = None,
    priority: Annotated[int, typer.Option(help="Lower goes strictly first.")] = 0,
    expires: Annotated[float | None, typer.Option(metavar="DAYS", help="Days that it is good for.")] = None,
    keys: KeysPath = _DEFAULT,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from rayloom.serving.keys import Terms

    terms = Terms(scope or ("generate",), requests_per_minute, tokens_per_minute, priority, expires)
    secret = _store(keys).create(name, terms)
    typer.echo(secret)
    typer.echo(f"This is the only time that the key of '{name}' is shown. Its hash is in {keys}.", err=True)


@keys_app.command("list")
def list_keys(keys: KeysPath = _DEFAULT) -> None:
    """Show all keys, and what they may do."""
    table, now = Table("name", "state", "scopes", "requests / min", "tokens / min", "priority"), _now()
    table.add_column("created", no_wrap=True)
    for key in _store(keys).all():
        table.add_row(
            escape(key.name),
            _state(key, now),
            ", ".join(key.scopes),
            str(key.requests_per_minute or ""),
            str(key.tokens_per_minute or ""),
            str(key.priority),
            f"{key.created:%Y-%m-%d}",
        )
    console.print(table)


@keys_app.command()
def revoke(name: Name, keys: KeysPath = _DEFAULT) -> None:
    """Refuse a key from now on."""
    num_revoked = _store(keys).revoke(name)
    typer.echo(f"The key of '{name}' is refused from now on." if num_revoked else f"'{name}' has no good key left.")


def _store(path: Path) -> KeyStore:
    from rayloom.serving.keys import KeyStore

    return KeyStore(path)


def _state(key: ApiKey, now: datetime) -> str:
    if why := key.why_refused(now):
        return f"[red]{why}[/]"
    return "good" if key.expires is None else f"good until {key.expires:%Y-%m-%d}"


def _now() -> datetime:
    return datetime.now(UTC)
