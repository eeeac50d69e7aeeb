"""``rayloom submit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayloom.cli.options import Overrides


def submit(
    job: Annotated[Path, typer.Argument(help="Job file, such as jobs/finetune/t5_qa.yaml.", show_default=False)],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Job server of the cluster.")
    ] = "http://127.0.0.1:8265",
    set_: Overrides = [],  # noqa: B006 - typer copies it
    wait: Annotated[bool, typer.Option(help="Follow the log until the job ends.")] = True,
) -> None:
    """Run a job file (training, sweep or evaluation) on a Ray cluster.

    The working folder is uploaded, without .venv, .git, what .gitignore names, and the folders of results: runs, sweeps
    and reports.
    """
    from rayloom.launch import submit_job

    submit_job(job, address=address, overrides=set_, wait=wait, show=lambda text: typer.echo(text, nl=False))
