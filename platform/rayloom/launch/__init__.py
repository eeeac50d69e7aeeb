"""Config to Ray: sessions, training runs, artifacts, job submission.

Names are looked up when they are used: every Ray worker imports this package, and most need little of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayloom.launch.export import export_artifact
    from rayloom.launch.preparation import Prepared, prepare
    from rayloom.launch.progress import TerminalSink
    from rayloom.launch.runs import Run
    from rayloom.launch.session import Cluster, ray_session
    from rayloom.launch.submission import submit_job
    from rayloom.launch.training import TrainOutcome, run_training

_HOMES = {
    "Cluster": "session",
    "Prepared": "preparation",
    "Run": "runs",
    "TerminalSink": "progress",
    "TrainOutcome": "training",
    "export_artifact": "export",
    "prepare": "preparation",
    "ray_session": "session",
    "run_training": "training",
    "submit_job": "submission",
}

__all__ = [
    "Cluster",
    "Prepared",
    "Run",
    "TerminalSink",
    "TrainOutcome",
    "export_artifact",
    "prepare",
    "ray_session",
    "run_training",
    "submit_job",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
