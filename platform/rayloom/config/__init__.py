"""What a user may write: frozen pydantic sections that refuse unknown keys. No torch, no ray."""

from rayloom.config.dataset import DatasetConfig
from rayloom.config.evaluation import EvaluationConfig
from rayloom.config.experiments import ExperimentConfig, ExperimentPlot, ExperimentSystem
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
from rayloom.config.serving import (
    AutoscalingConfig,
    EngineKind,
    RouteConfig,
    ServedModelConfig,
    ServingConfig,
    WeightPrecision,
)
from rayloom.config.sweep import Dimension, SweepConfig
from rayloom.config.sweep_file import Sweep, load_sweep
from rayloom.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from rayloom.config.training import DistributedConfig, Precision, TrainingConfig

__all__ = [
    "AgainstProduction",
    "AutoscalingConfig",
    "DatasetConfig",
    "Dimension",
    "DistributedConfig",
    "EngineKind",
    "EvaluateJob",
    "EvaluationConfig",
    "ExperimentConfig",
    "ExperimentPlot",
    "ExperimentSystem",
    "GateConfig",
    "GenerationConfig",
    "LoraConfig",
    "MlflowConfig",
    "ModelConfig",
    "OutputConfig",
    "Precision",
    "RandomInit",
    "RouteConfig",
    "RunConfig",
    "ServedModelConfig",
    "ServingConfig",
    "Sweep",
    "SweepConfig",
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
    "load_sweep",
    "nearest",
    "parse_yaml",
    "validate",
]
