"""The loop, its backends, checkpoints and records. No ray."""

from rayloom.training.backends import Backend, PlainBackend
from rayloom.training.checkpoint import Part, Progress, load_progress, load_weights
from rayloom.training.commits import Commit, Identity
from rayloom.training.deepspeed_backend import DeepSpeedBackend, deepspeed_config
from rayloom.training.heap import HUGE_PAGES, keep_freed_memory
from rayloom.training.job import Job
from rayloom.training.loop import train
from rayloom.training.loss import TokenLoss
from rayloom.training.records import EvalRecord, Reporter, StepRecord, Validation, Validator
from rayloom.training.saver import CheckpointSaver, Member
from rayloom.training.storage import Storage
from rayloom.training.store import CheckpointStore

__all__ = [
    "HUGE_PAGES",
    "Backend",
    "CheckpointSaver",
    "CheckpointStore",
    "Commit",
    "DeepSpeedBackend",
    "EvalRecord",
    "Identity",
    "Job",
    "Member",
    "Part",
    "PlainBackend",
    "Progress",
    "Reporter",
    "StepRecord",
    "Storage",
    "TokenLoss",
    "Validation",
    "Validator",
    "deepspeed_config",
    "keep_freed_memory",
    "load_progress",
    "load_weights",
    "train",
]
