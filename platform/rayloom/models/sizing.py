"""How much memory, disk and time a run needs: estimates, with their formulas.

Bytes per parameter of mixed-precision Adam follow ZeRO (Rajbhandari et al., 2020, section 3): 2 for the
weight, 2 for the gradient, 12 for optimizer state (fp32 copy and two moments); all fp32: 4, 4 and 8. Stage 1
divides optimizer state by the number of workers, stage 2 gradients as well, stage 3 weights as well. Without ZeRO,
workers on CPUs of one machine share trained weights and optimizer state (`rayloom.training.shared_update`).
Activations follow Korthikanti et al. (2022), equation 1: ``34 x tokens x width`` bytes per 16-bit layer, and
``5 x heads x length`` per token where attention keeps its score matrix; logits count apart, at positions with a
target, with their gradient. Floating-point operations are 6 x parameters x tokens, 4 x with LoRA, whose frozen
weights need no gradients, and a third more with checkpointing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rayloom.config import RunConfig
from rayloom.models.families import Family, family_of
from rayloom.models.lora import layer_shape, target_layers
from rayloom.models.variants import VARIANTS, meta_model

GIB = 1 << 30
STAGES = (0, 1, 2, 3)
OVERHEAD_BYTES = GIB
"""Of a worker before it holds a model: Python, torch and Ray on a CPU, the CUDA context on a GPU."""
_TOKENIZER_BYTES = 4 << 20
_HEADROOM = 0.9
"""Share of the memory that a plan may use: the rest is fragmentation and what the formulas leave out."""
_RECOMPUTED: dict[bool | str, float] = {False: 0.0, "selective": 0.5, True: 1.0}
"""Share of the blocks whose activations are computed again."""


@dataclass(frozen=True)
class Shape:
    """What the sizes of a run depend on."""

    family: Family
    parameters: int
    trainable: int
    width: int
    num_layers: int
    """Encoder and decoder together."""
    num_heads: int
    vocabulary: int
    max_positions: int | None
    largest_layer: int
    """Parameters of the largest single layer: what stage 3 must gather at once."""


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes that one worker needs at a ZeRO stage.

    ``host`` is what offloading moves from the GPU to the worker's host.
    """

    stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    host: int

    @property
    def device(self) -> int:
        """Bytes on the worker's device, overhead included."""
        return self.weights + self.gradients + self.optimizer + self.activations + OVERHEAD_BYTES

    def fits(self, limit: int) -> bool:
        """Whether a worker with so many bytes has room for it."""
        return self.device <= _HEADROOM * limit


@dataclass(frozen=True)
class Amount:
    """The work of a run; None where the rows are not known."""

    steps_per_epoch: int | None
    total_steps: int | None
    total_tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class Sizing:
    """All estimates of a run."""

    shape: Shape
    stages: tuple[WorkerMemory, ...]
    """For stages 0 to 3."""
    chosen_stage: int
    memory_limit: int | None
    """Bytes that one worker has."""
    checkpoint_bytes: int
    """Of the checkpoints that are kept, and of one more: a new one is whole before an old one goes."""
    artifact_bytes: int
    amount: Amount

    @property
    def chosen(self) -> WorkerMemory:
        """The stage that the config asks for."""
        return self.stages[self.chosen_stage]

    @property
    def total_disk(self) -> int:
        """Checkpoints and artifact together."""
        return self.checkpoint_bytes + self.artifact_bytes

    def fits(self, memory: WorkerMemory) -> bool | None:
        """Whether a stage fits in the limit; None without one."""
        return None if self.memory_limit is None else memory.fits(self.memory_limit)

    @property
    def lowest_fitting_stage(self) -> int | None:
        """The fastest stage that fits, if any does."""
        return next((memory.stage for memory in self.stages if self.fits(memory)), None)


@dataclass(frozen=True)
class Rows:
    """The train rows, as far as they are known."""

    num_examples: int
    tokens_per_example: float
    longest_example: int | None = None
    """Tokens; batches are only padded to their longest row."""


def estimate(
    config: RunConfig,
    hf_config: Any,
    *,
    rows: Rows | None = None,
    memory_limit: int | None = None,
    flops: float | None = None,
    one_machine: bool = False,
) -> Sizing:
    """Estimate a run before it starts.

    Args:
        config: The run.
        hf_config: The model's transformers configuration.
        rows: Train rows; without them steps and time stay unknown.
        memory_limit: Bytes that one worker has.
        flops: Floating-point operations per second that one worker reaches in training.
        one_machine: All workers are CPUs of one machine.

    Raises:
        ModelError: The model does not generate text, or a LoRA target does not exist.
    """
    shape = shape_of(config, hf_config)
    checkpoint = _checkpoint_bytes(config, shape)
    return Sizing(
        shape=shape,
        stages=tuple(worker_memory(config, shape, stage, rows, one_machine=one_machine) for stage in STAGES),
        chosen_stage=config.distributed.stage,
        memory_limit=memory_limit,
        # The best and the last are kept whatever is asked for.
        checkpoint_bytes=checkpoint * (1 + max(2, config.training.save_total_limit)),
        artifact_bytes=_artifact_bytes(config, shape),
        amount=_amount(config, shape, rows, flops),
    )


def shape_of(config: RunConfig, hf_config: Any) -> Shape:
    """Count a model's parameters, trained ones apart, on the meta device. See `estimate` for errors."""
    family = family_of(hf_config)
    model = meta_model(hf_config)
    parameters = trainable = sum(p.numel() for p in model.parameters()) + _untied_head(hf_config)
    if config.lora is not None:
        layers = target_layers(model, config.lora.target_modules or family.lora_targets)
        trainable = config.lora.r * sum(sum(layer_shape(layer)) for layer in layers.values())
        parameters += trainable
    decoders = [getattr(hf_config, name, None) for name in ("num_decoder_layers", "decoder_layers")]
    decoder_layers = next((count for count in decoders if count), 0)
    positions = getattr(hf_config, family.positions_field, None) if family.positions_field else None
    return Shape(
        family=family,
        parameters=parameters,
        trainable=trainable,
        width=hf_config.hidden_size,
        num_layers=hf_config.num_hidden_layers + (decoder_layers if family.seq2seq else 0),
        num_heads=hf_config.num_attention_heads,
        vocabulary=hf_config.vocab_size,
        max_positions=positions,
        largest_layer=max(parameter.numel() for parameter in model.parameters()),
    )


def _untied_head(hf_config: Any) -> int:
    """T5 v1.1 has a head of its own, which transformers 5 only finds out when it sees the checkpoint."""
    if getattr(hf_config, "scale_decoder_outputs", True):
        return 0
    return int(hf_config.vocab_size * hf_config.hidden_size)


def worker_memory(
    config: RunConfig, shape: Shape, stage: int, rows: Rows | None = None, *, one_machine: bool = False
) -> WorkerMemory:
    """Bytes that one worker needs at a ZeRO stage. The formulas stand at the top of this file.

    Args:
        config: The run.
        shape: Of its model.
        stage: ZeRO stage, instead of the config's.
        rows: Train rows, where they are known.
        one_machine: All workers are CPUs of one machine.
    """
    workers, half = config.distributed.num_workers, config.training.precision != "fp32"
    uses_deepspeed = config.distributed.uses_deepspeed or stage > 0
    # The plain backend keeps weights in fp32 and computes under autocast.
    wide = 2 if half and uses_deepspeed else 4
    weights, gradients = wide * shape.parameters, wide * shape.trainable
    if half and not uses_deepspeed:
        weights += 2 * shape.parameters  # autocast's copies, which the backward pass needs too
    optimizer = (12 if half and uses_deepspeed else 8) * shape.trainable
    shares = one_machine and not uses_deepspeed and config.training.precision != "fp16"
    if shares:
        weights -= wide * shape.trainable - math.ceil(wide * shape.trainable / workers)
    if shares or stage >= 1:
        optimizer = math.ceil(optimizer / workers)
    if stage >= 2:
        gradients = math.ceil(gradients / workers)
    gathered = 2 * wide * shape.largest_layer
    if stage == 3:
        weights = math.ceil(weights / workers) + gathered
    host = 0
    if config.distributed.offload != "none" and stage >= 1:
        host, optimizer = optimizer, 0
        if stage == 3:
            host, weights = host + weights - gathered, gathered
    return WorkerMemory(stage, weights, gradients, optimizer, activation_bytes(config, shape, rows), host)


@dataclass(frozen=True)
class Layout:
    """Tensors of the largest micro-batch.

    Attributes:
        tokens: Positions, padding included; of an encoder-decoder, on both sides together.
        width: Positions of the longest sequence.
        targets: Positions whose logits are computed.
    """

    tokens: int
    width: int
    targets: int


def layout_of(config: RunConfig, shape: Shape, rows: Rows | None = None) -> Layout:
    """The largest micro-batch: of the longest rows, or of full length if unknown; packed ones share wider sequences."""
    dataset, training = config.dataset, config.training
    longest = (rows.longest_example if rows else None) or 1 << 40
    length, target = min(dataset.max_input_length, longest), min(dataset.max_target_length, longest)
    is_pair = config.model.task_type != "language-modeling"
    whole = min(length + target, longest) if is_pair else length
    sides = (length, target) if shape.family.seq2seq else (whole,)
    tokens, width = training.batch_size * whole, max(sides)
    if training.packing_length is not None:
        # First-fit leaves no bin before the last with room for another longest row.
        per_bin = max(1, min(training.packing_length // side for side in sides))
        widths = [max(side, min(training.packing_length, training.batch_size * side)) for side in sides]
        tokens, width = math.ceil(training.batch_size / per_bin) * sum(widths), max(widths)
    # A pair has targets in its answer only; a text and a chat may have them everywhere.
    answers_only = is_pair and config.model.task_type != "chat"
    return Layout(tokens, width, training.batch_size * target if answers_only else tokens)


def activation_bytes(config: RunConfig, shape: Shape, rows: Rows | None = None) -> int:
    """Bytes of the largest micro-batch's activations, see `layout_of`."""
    layout, recompute = layout_of(config, shape, rows), config.training.gradient_checkpointing
    scale = 1 if config.training.precision != "fp32" else 2
    layers = shape.num_layers / 2 if shape.family.seq2seq else shape.num_layers
    per_layer = 34 * scale * layout.tokens * shape.width
    if shape.family.materialises_scores:
        per_layer += 5 * scale * shape.num_heads * layout.tokens * layout.width
    share = _RECOMPUTED[recompute]
    # What is recomputed keeps its input, and one block at a time is whole.
    inputs = 2 * scale * layout.tokens * shape.width
    kept = (1 - share) * per_layer * layers + share * inputs * layers + (per_layer if share else 0)
    logits = 2 * 2 * scale * layout.targets * shape.vocabulary
    return int(min(kept, per_layer * layers) + logits)


def training_flops(config: RunConfig, shape: Shape, tokens: int) -> float:
    """Floating-point operations of training on so many tokens."""
    per_parameter = 6 if config.lora is None else 4
    recompute = 1 + _RECOMPUTED[config.training.gradient_checkpointing] / 3
    return per_parameter * recompute * shape.parameters * tokens


def _checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Trained weights in fp32, optimizer state, and what DeepSpeed keeps of the weights themselves."""
    total = (4 + 8) * shape.trainable
    if config.distributed.uses_deepspeed:
        total += (4 + 2) * shape.trainable if config.training.precision != "fp32" else 4 * shape.trainable
    return total


def _artifact_bytes(config: RunConfig, shape: Shape) -> int:
    carries_base = config.model.random_init is not None
    weights = shape.parameters if config.lora is None or carries_base else shape.trainable
    return 4 * weights + _TOKENIZER_BYTES


def _amount(config: RunConfig, shape: Shape, rows: Rows | None, flops: float | None) -> Amount:
    if rows is None:
        return Amount(None, None, None, None)
    training, workers = config.training, config.distributed.num_workers
    per_step = config.global_batch_size
    steps_per_epoch = math.ceil(rows.num_examples / per_step)
    total = steps_per_epoch * training.num_epochs
    if training.max_steps is not None:
        total = min(total, training.max_steps)
    examples = min(total * per_step, rows.num_examples * training.num_epochs)
    tokens = int(examples * rows.tokens_per_example)
    seconds = training_flops(config, shape, tokens) / (flops * workers) if flops else None
    return Amount(steps_per_epoch, total, tokens, seconds)


@dataclass(frozen=True)
class SizingRow:
    """A model in the sizing table: the least hardware for each kind of training and size of GPU."""

    model: str
    parameters: int
    full: dict[int, str]
    """GiB of a GPU to such as ``2 x ZeRO 2``; ``-`` where eight are not enough."""
    lora: dict[int, str]


def sizing_table(gpus: tuple[int, ...] = (16, 24, 80)) -> list[SizingRow]:
    """Which stage and how many GPUs the well-known models need.

    Reckoned with bf16, 4 rows of 512 + 128 tokens per GPU, gradient checkpointing and no offload;
    LoRA with r = 16.
    """
    base = {
        "model": {"name": "x"},
        "dataset": {"train_file": "x"},
        "training": {"bf16": True, "batch_size": 4, "gradient_checkpointing": True},
    }
    rows = []
    for name, hf_config in VARIANTS.items():
        cells = {}
        for kind, extra in (("full", {}), ("lora", {"lora": {"r": 16}})):
            config = RunConfig.model_validate(base | extra)
            shape = shape_of(config, hf_config)
            cells[kind] = {gib: _least_hardware(config, shape, gib) for gib in gpus}
        rows.append(SizingRow(name, shape.parameters - shape.trainable, cells["full"], cells["lora"]))
    return rows


def _least_hardware(config: RunConfig, shape: Shape, gib: int) -> str:
    """Fewest GPUs first, then the lowest stage: fewer GPUs are cheaper, lower stages faster."""
    for count in (1, 2, 4, 8):
        for stage in STAGES if count > 1 else (0,):
            workers = config.distributed.model_copy(
                update={"num_workers": count, "zero_stage": stage, "backend": "deepspeed"}
            )
            memory = worker_memory(config.model_copy(update={"distributed": workers}), shape, stage)
            if memory.fits(gib * GIB):
                return f"{count} x ZeRO {stage}"
    return "-"
