"""Config to Ray: sessions, training runs, artifacts, job submission."""

from rayloom.launch.export import export_artifact
from rayloom.launch.prepare import Prepared, prepare
from rayloom.launch.progress import TerminalSink
from rayloom.launch.runs import Run
from rayloom.launch.session import Cluster, ray_session
from rayloom.launch.submission import submit_job
from rayloom.launch.training import TrainOutcome, run_training

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
