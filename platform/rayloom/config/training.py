"""Config of training: optimisation, precision, cadence; and of the workers it runs on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayloom.config.base import Section

Precision = Literal["fp32", "bf16", "fp16"]


class TrainingConfig(Section):
    """How the model is optimised."""

    num_epochs: int = Field(3, ge=1)
    """Passes over the train rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever num_epochs says."""
    batch_size: int = Field(8, ge=1)
    """Rows per worker and micro-batch."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step. Rows per step: batch_size x accumulation x workers."""
    learning_rate: float = Field(5e-5, gt=0.0)
    """Peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after warm-up, down to zero at the last step (constant: none)."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up."""
    warmup_ratio: float | None = Field(None, ge=0.0, lt=1.0)
    """Share of all steps that warm up; instead of warmup_steps."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW decay, on matrices only (not on biases and norms)."""
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """AdamW."""
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0)
    """AdamW."""
    adam_epsilon: float = Field(1e-8, gt=0.0)
    """AdamW."""
    max_grad_norm: float = Field(1.0, ge=0.0)
    """Clip the global gradient norm; 0 for no clipping."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the target mass that is spread over the vocabulary."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Recompute activations in the backward pass: less memory, about a third more time. ``selective`` does so in every
    second block only: half of the saving for half of the time."""
    packing: bool = False
    """Put several rows of a micro-batch into one sequence instead of padding each. Rows see only themselves, so
    losses and gradients stay the same; models that cannot keep rows apart are refused."""
    packing_length: int | None = Field(None, ge=8)
    """Tokens that a packed sequence may hold (of an encoder-decoder: on either side); the longest row of the
    micro-batch where not given. Longer sequences pad less, but attention costs grow with their square."""
    fp16: bool = False
    """Half precision with loss scaling (GPU only)."""
    bf16: bool = False
    """bfloat16 where the chip has it."""
    seed: int = 42
    """Seeds initialisation, data order and dropout."""

    eval_every_epochs: int = Field(1, ge=1)
    """Measure on validation (and checkpoint) every so many epochs."""
    eval_on_start: bool = False
    """Also measure before the first step: what the model could do already."""
    eval_rows: int | None = Field(128, ge=0)
    """Validation rows to generate for ROUGE and exact match; 0 for none, null for all. Loss always uses all
    rows."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Also checkpoint every so many steps, to resume from."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints to keep; the best and the last are always kept."""
    metric_for_best: Literal["loss", "rougeL", "exact_match", "bleu"] = "loss"
    """Validation metric that picks the checkpoint the artifact is made of."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop when metric_for_best has not improved in this many evaluations."""
    early_stopping_threshold: float = Field(0.0, ge=0.0)
    """What counts as an improvement."""
    logging_steps: int = Field(10, ge=1)
    """Log loss, learning rate and speed every so many steps."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite: stop the run and name the rows, or leave out the update and
    say so. ``skip`` looks at every step, which costs GPUs a little speed; ``stop`` looks when it logs and saves."""
    compile: bool = False
    """Compile the model's layers (torch.compile) before the first step: up to some minutes on a machine's first time,
    seconds later. Steps are faster then, with LoRA most of all. Not for zero_stage 3."""
    profile: bool = False
    """Trace steps 5 to 10 of the first worker with torch's profiler into the run's folder."""

    @property
    def precision(self) -> Precision:
        """The chosen precision."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def larger_is_better(self) -> bool:
        """Whether metric_for_best grows with quality."""
        return self.metric_for_best != "loss"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 contradict each other: choose one")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("warmup_steps and warmup_ratio contradict each other: give one")
        if self.packing_length is not None and not self.packing:
            raise ValueError("packing_length without packing does nothing: set packing: true, or leave it out")
        if self.metric_for_best != "loss" and self.eval_rows == 0:
            raise ValueError(f"metric_for_best '{self.metric_for_best}' needs generated rows: set eval_rows above 0")
        return self


class DistributedConfig(Section):
    """The workers of a run."""

    num_workers: int = Field(1, ge=1)
    """Ray Train workers. With training.batch_size and accumulation it decides the rows per step, which stay the same
    when a run is resumed on another number of workers."""
    min_workers: int | None = Field(None, ge=1)
    """Start with, or shrink to, this many workers when the cluster has no room for num_workers, and grow again when
    it has (elastic). Fixed at num_workers where not given. Rows per step stay the same."""
    backend: Literal["auto", "plain", "deepspeed"] = "auto"
    """``deepspeed``, or ``plain`` PyTorch; ``auto`` takes DeepSpeed if zero_stage is given."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO: 0 replicates all, 1 shards optimizer state, 2 also gradients, 3 also weights."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where DeepSpeed keeps optimizer state (and, at stage 3, weights). Needs zero_stage 1 or more."""
    nvme_path: str | None = None
    """Folder for offload 'nvme'."""
    use_gpu: bool | Literal["auto"] = "auto"
    """One GPU per worker; ``auto`` if the cluster has any."""
    cpus_per_worker: float = Field(1.0, gt=0.0)
    """CPUs that Ray reserves per worker; also the number of compute threads on CPU workers."""
    max_failures: int = Field(2, ge=-1)
    """How often lost workers are replaced; -1 for ever."""

    @property
    def uses_deepspeed(self) -> bool:
        """Whether the DeepSpeed backend trains."""
        return self.backend == "deepspeed" or (self.backend == "auto" and self.zero_stage is not None)

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 where none was given."""
        return self.zero_stage or 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backend == "plain" and self.zero_stage is not None:
            raise ValueError("zero_stage needs backend 'deepspeed' (or 'auto'), not 'plain'")
        if self.offload != "none" and self.stage < 1:
            raise ValueError("offload needs zero_stage 1, 2 or 3")
        if self.offload == "nvme" and self.stage != 3:
            raise ValueError("offload 'nvme' needs zero_stage 3")
        if (self.offload == "nvme") != (self.nvme_path is not None):
            raise ValueError("offload 'nvme' and nvme_path go together")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is above num_workers {self.num_workers}")
        return self
