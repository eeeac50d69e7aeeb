"""``rayloom serve``: an artifact behind HTTP on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rayloom.config import AutoscalingConfig, EngineKind, ServingConfig, WeightPrecision, validate


def _help(section: type[ServingConfig] | type[AutoscalingConfig], field: str) -> str:
    return section.model_fields[field].description or ""


def serve(
    artifact: Annotated[str, typer.Argument(help=_help(ServingConfig, "artifact"))],
    host: Annotated[str, typer.Option(help="Address to listen on. Anything but loopback wants --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    max_batch_size: Annotated[int | None, typer.Option(help=_help(ServingConfig, "max_batch_size"))] = None,
    precision: Annotated[WeightPrecision | None, typer.Option(help=_help(ServingConfig, "precision"))] = None,
    engine: Annotated[EngineKind | None, typer.Option(help=_help(ServingConfig, "engine"))] = None,
    num_cpus: Annotated[float | None, typer.Option(help=_help(ServingConfig, "num_cpus"))] = None,
    num_gpus: Annotated[float | None, typer.Option(help=_help(ServingConfig, "num_gpus"))] = None,
    max_replicas: Annotated[int | None, typer.Option(help=_help(AutoscalingConfig, "max_replicas"))] = None,
    keys: Annotated[str | None, typer.Option("--keys", metavar="FILE", help=_help(ServingConfig, "keys_file"))] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help=_help(ServingConfig, "allow_anonymous"))
    ] = False,
    request_timeout_s: Annotated[float | None, typer.Option(help=_help(ServingConfig, "request_timeout_s"))] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help=_help(ServingConfig, "page"))] = False,
) -> None:
    """Serve an artifact over HTTP on this machine: the OpenAI API (/v1), /generate, /answer, /health and /docs.

    On a cluster, use `serve deploy` with a file from serve_configs/.
    """
    given = {
        "max_batch_size": max_batch_size,
        "precision": precision,
        "engine": engine,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "request_timeout_s": request_timeout_s,
        "keys_file": keys,
        "allow_anonymous": allow_anonymous or None,
        "page": page or None,
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if max_replicas is not None:
        values["autoscaling"] = {"max_replicas": max_replicas}
    from rayloom.registry import locate

    locate(artifact)  # a version that is not there is said before anything is imported
    config = validate(ServingConfig, {"artifact": artifact, **values})
    from rayloom.serving.launcher import serve_artifact

    serve_artifact(config, host=host, port=port, say=typer.echo)
