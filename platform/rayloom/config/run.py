"""The whole of a ``config.yaml``, and of an evaluation job."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rayloom.config.base import Section
from rayloom.config.dataset import DatasetConfig
from rayloom.config.evaluation import EvaluationConfig
from rayloom.config.generation import GenerationChanges, GenerationConfig
from rayloom.config.model import LoraConfig, ModelConfig
from rayloom.config.tracking import TrackingConfig
from rayloom.config.training import DistributedConfig, TrainingConfig


class OutputConfig(Section):
    """Where results go."""

    storage_path: str = "runs"
    """Folder or URI (``s3://…``) for checkpoints and runs. Relative paths start at the working folder."""
    run_name: str | None = None
    """Name of the run. A name that exists is resumed with ``rayloom train --resume``; a dated one where not
    given."""
    artifact_path: str | None = None
    """Folder or URI of the finished artifact; ``<storage_path>/<run_name>/artifact`` where not given."""

    @field_validator("run_name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith(".") or "/" in value or "\\" in value):
            raise ValueError(f"{value!r} cannot name a run: it names one folder, so take no slash and no dot first")
        return value


class RunConfig(Section):
    """One training run: the model, its data, and how it is trained, measured and used."""

    model: ModelConfig
    dataset: DatasetConfig
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    lora: LoraConfig | None = None
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step."""
        training = self.training
        return training.batch_size * training.gradient_accumulation_steps * self.distributed.num_workers

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.generation_type == "seq2seq" and self.model.task_type in ("language-modeling", "chat"):
            raise ValueError(f"task_type '{self.model.task_type}' needs a causal model, not a seq2seq one")
        if self.model.task_type == "language-modeling" and self.training.metric_for_best != "loss":
            raise ValueError("language modelling has no references to compare with: metric_for_best must be 'loss'")
        if self.training.compile and self.distributed.stage == 3:
            raise ValueError(
                "training.compile does not go with zero_stage 3, where layers fetch their weights: leave out one"
            )
        return self


class EvaluateJob(Section):
    """One evaluation: an artifact measured on a dataset."""

    artifact: str
    """Folder or URI of the artifact."""
    dataset: DatasetConfig | None = None
    """Other rows than those of the artifact's own run."""
    splits: list[Literal["train", "validation", "test"]] = ["validation", "test"]
    """Splits to measure."""
    generation: GenerationChanges = Field(default_factory=dict)
    """Changes to the artifact's generation parameters."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    output: str = "reports"
    """Folder of the report."""
