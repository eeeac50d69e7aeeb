"""The Ray Serve application: HTTP routes, model replicas, a launcher for this machine, and API keys."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayloom.serving.app import application, build
    from rayloom.serving.launcher import serve_artifact, serving

__all__ = ["application", "build", "serve_artifact", "serving"]


def __getattr__(name: str) -> Any:
    """Import on first use: `rayloom keys` needs no Ray."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "app" if name in ("application", "build") else "launcher"
    return getattr(import_module(f"{__name__}.{module}"), name)
