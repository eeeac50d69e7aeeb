"""The loop, its backends, checkpoints and records. No ray."""

from rayloom.training.backends import Backend, PlainBackend
from rayloom.training.checkpoint import Progress, load_progress, load_weights
from rayloom.training.deepspeed_backend import DeepSpeedBackend, deepspeed_config
from rayloom.training.loop import Job, train
from rayloom.training.loss import TokenLoss
from rayloom.training.records import EvalRecord, Reporter, StepRecord, Validation, Validator

__all__ = [
    "Backend",
    "DeepSpeedBackend",
    "EvalRecord",
    "Job",
    "PlainBackend",
    "Progress",
    "Reporter",
    "StepRecord",
    "TokenLoss",
    "Validation",
    "Validator",
    "deepspeed_config",
    "load_progress",
    "load_weights",
    "train",
]
