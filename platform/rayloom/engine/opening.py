"""From a loaded transformers model to an engine that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from rayloom.config import EngineKind
from rayloom.engine.adapter_files import adaptable_layers
from rayloom.engine.adapters import LoraBank
from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import PagedCache
from rayloom.engine.engine import MAX_LENGTH, Engine
from rayloom.engine.linear import Precision
from rayloom.engine.plan import Limits
from rayloom.engine.runners import Runner, build_runner, check_parity
from rayloom.errors import ModelError

_GATE_BLOCKS = 16
"""What the parity check needs."""
_MEMORY_SHARE = 0.25
_ADAPTER_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_MOST_HOST_BYTES = 2 << 30
"""Without being told, a replica does not take more of a host's memory: it is rarely alone there."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is opened.

    Attributes:
        kind: What computes: Rayloom's own engine, or vLLM (see `rayloom.engine.vllm`).
        precision: Of the weights.
        max_sequences: Most sequences (beams and answers counted one by one) in one step.
        max_step_tokens: Most tokens of one step.
        cache_bytes: For keys and values; what `max_sequences` of full length take, but at most a quarter of the
            free memory (on CPUs 2 GiB), where not given.
        max_adapters: Adapters in memory at once.
        max_rank: Highest LoRA rank.
        debug: Check the scheduler's invariants after every step: slow, for tests.
    """

    kind: EngineKind = "rayloom"
    precision: Precision = "fp32"
    max_sequences: int = 32
    max_step_tokens: int = 512
    cache_bytes: int | None = None
    max_adapters: int = 32
    max_rank: int = 128
    debug: bool = False


def open_engine(model: PreTrainedModel, options: EngineOptions) -> Engine:
    """An engine over a model, once its logits are those of transformers.

    Args:
        model: On its device, in evaluation mode; a PEFT model's ``get_base_model()`` counts without its adapters.
            In fp32 it may be used on; where products use weights in place (`linear.in_place`) it shares them.
        options: See `EngineOptions`.

    Raises:
        ModelError: The engine cannot compute this model right, or the cache would be too small to be of use.
    """
    runner = build_runner(model, num_blocks=_GATE_BLOCKS, precision=options.precision)
    check_parity(model, runner)
    num_blocks = _num_blocks(runner, options)
    runner.cache = PagedCache(runner.cache.shape, num_blocks, runner.device)
    runner.lora = LoraBank(
        options.max_adapters,
        options.max_rank,
        adaptable_layers(model),
        dtype=_ADAPTER_TYPES[options.precision],
        device=runner.device,
    )
    limits = Limits(
        num_blocks=num_blocks,
        max_sequences=options.max_sequences,
        max_step_tokens=max(options.max_step_tokens, options.max_sequences),
        encoder_layers=runner.encoder_layers,
    )
    return Engine(runner, limits, debug=options.debug)


def _num_blocks(runner: Runner, options: EngineOptions) -> int:
    block_bytes = runner.cache.shape.block_bytes
    wanted = options.max_sequences * -(-(runner.max_positions or MAX_LENGTH) // BLOCK) * (2 if runner.seq2seq else 1)
    budget = options.cache_bytes if options.cache_bytes is not None else _default_bytes(runner.device)
    num_blocks = min(wanted, budget // block_bytes)
    if num_blocks < options.max_sequences:
        raise ModelError(
            f"{budget / 2**20:.0f} MiB for keys and values hold {num_blocks * BLOCK} tokens of this model, less than "
            f"{BLOCK} for each of {options.max_sequences} sequences: give more memory, or fewer sequences"
        )
    return int(num_blocks)


def _default_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _MEMORY_SHARE)
    available: Any = psutil.virtual_memory().available
    return min(int(available * _MEMORY_SHARE), _MOST_HOST_BYTES)
