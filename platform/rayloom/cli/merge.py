"""``rayloom merge``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

console = Console(soft_wrap=True)


def merge(
    artifact: Annotated[str, typer.Argument(help="Artifact of an adapter (folder or URI).", show_default=False)],
    destination: Annotated[str, typer.Argument(help="Folder or URI of the new artifact.", show_default=False)],
) -> None:
    """Add a LoRA adapter into its base model's weights: a full model that needs no PEFT.

    What rounding changes is measured on the artifact's golden prompts and printed; an artifact whose golden answers
    would change is not published.
    """
    from rayloom.launch.merging import merge_artifact

    outcome = merge_artifact(artifact, destination)
    drift = outcome.drift
    console.print(f"merged: [bold]{escape(outcome.artifact)}[/]", highlight=False)
    console.print(
        f"drift over {drift.num_tokens} tokens of the golden prompts: largest change of a logit {drift.largest:.2g} "
        f"({drift.relative:.2g} of their spread), likeliest token equal at {drift.equal_tokens:.1%}",
        highlight=False,
    )
