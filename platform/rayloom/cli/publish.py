"""``rayloom publish``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

console = Console(soft_wrap=True)


def publish(
    artifact: Annotated[
        str,
        typer.Argument(help="Artifact (folder or URI) or version in the registry (qa@3).", show_default=False),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            help="hf://OWNER/NAME or hf://OWNER/NAME@BRANCH on the Hugging Face hub, or a folder or URI.",
            show_default=False,
        ),
    ],
    license_id: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights for the model card, such as apache-2.0.")
    ] = None,
    public: Annotated[
        bool | None,
        typer.Option(
            "--public/--private",
            help="On the hub: who may read it.",
            show_default="a new repository is private, another stays as it is",
        ),
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="On the hub: the commit's message.", show_default=False)
    ] = None,
) -> None:
    """Publish an artifact with its model card: on the Hugging Face hub, in a folder, or behind a URI.

    On the hub, stock libraries load it by its name (from_pretrained("OWNER/NAME")), and Rayloom, with its prompt
    template and golden prompts, as hf://OWNER/NAME: rayloom serve hf://OWNER/NAME. Log in first: hf auth login, or
    HF_TOKEN.
    """
    from rayloom.artifacts import Publication, open_artifact, publish_again
    from rayloom.registry import locate

    found = open_artifact(locate(artifact))
    place = publish_again(found, destination, Publication(license_id, public, message))
    console.print(f"published: [bold]{escape(place)}[/]", highlight=False)
    if place.startswith("hf://"):
        console.print(f"serve it anywhere: rayloom serve {escape(place)}", highlight=False)
