"""``rayloom config``: the schema, and what a config resolves to."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rayloom.cli.options import ConfigPath, Overrides

config_app = typer.Typer(help="Check a config, show what it resolves to, or print its schema.", no_args_is_help=True)


@config_app.command()
def show(
    config: ConfigPath,
    set_: Overrides = [],  # noqa: B006 - typer copies it
    deepspeed: Annotated[bool, typer.Option(help="Show the DeepSpeed config that it generates.")] = False,
) -> None:
    """Check a config and print it with every default filled in."""
    from rayloom.config import dump_yaml, load_run_config

    loaded = load_run_config(config, set_)
    if not deepspeed:
        typer.echo(dump_yaml(loaded), nl=False)
        return
    from rayloom.training import deepspeed_config

    workers = loaded.distributed
    shown = deepspeed_config(loaded, on_gpu=workers.use_gpu is True, num_workers=workers.num_workers)
    typer.echo(json.dumps(shown, indent=2))


@config_app.command()
def schema() -> None:
    """Print the JSON schema of config.yaml, for editors."""
    from rayloom.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
