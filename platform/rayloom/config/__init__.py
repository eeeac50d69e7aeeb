"""What a user may write: frozen pydantic sections that refuse unknown keys. No torch, no ray."""

from rayloom.config.dataset import DatasetConfig
from rayloom.config.evaluation import EvaluationConfig
from rayloom.config.gate import AgainstProduction, GateConfig, Threshold
from rayloom.config.generation import GenerationConfig
from rayloom.config.loading import (
    build_section,
    config_hash,
    dump_yaml,
    json_schema,
    load_job,
    load_run_config,
    load_section,
    parse_yaml,
    validate,
)
from rayloom.config.model import LoraConfig, ModelConfig, RandomInit, TaskType
from rayloom.config.problems import nearest
from rayloom.config.run import EvaluateJob, OutputConfig, RunConfig
from rayloom.config.serving import AutoscalingConfig, ServingConfig, WeightPrecision
from rayloom.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from rayloom.config.training import DistributedConfig, Precision, TrainingConfig

__all__ = [
    "AgainstProduction",
    "AutoscalingConfig",
    "DatasetConfig",
    "DistributedConfig",
    "EvaluateJob",
    "EvaluationConfig",
    "GateConfig",
    "GenerationConfig",
    "LoraConfig",
    "MlflowConfig",
    "ModelConfig",
    "OutputConfig",
    "Precision",
    "RandomInit",
    "RunConfig",
    "ServingConfig",
    "TaskType",
    "Threshold",
    "TrackingConfig",
    "TrainingConfig",
    "WandbConfig",
    "WeightPrecision",
    "build_section",
    "config_hash",
    "dump_yaml",
    "json_schema",
    "load_job",
    "load_run_config",
    "load_section",
    "nearest",
    "parse_yaml",
    "validate",
]
