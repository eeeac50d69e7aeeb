"""Models as the engine runs them: a forward pass per family over the paged cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from rayloom.engine.linear import Precision
from rayloom.engine.runners import gpt, llama, t5
from rayloom.engine.runners.base import Runner
from rayloom.engine.runners.calibration import activation_peaks
from rayloom.engine.runners.gate import check_parity
from rayloom.engine.runners.generic import GenericRunner
from rayloom.engine.runners.weights import Packing

__all__ = ["Runner", "build_runner", "check_parity"]


_RUNNERS: tuple[tuple[Any, Callable[..., Runner]], ...] = (
    (llama, llama.LlamaRunner),
    (gpt, gpt.GptRunner),
    (t5, t5.T5Runner),
)


def build_runner(model: PreTrainedModel, *, num_blocks: int, precision: Precision) -> Runner:
    """The runner for a loaded model.

    Args:
        model: A transformers model on its device, in evaluation mode; also ``peft_model.get_base_model()``, whose
            adapters are left out. In fp32 its parameters become views into the runner's weights.
        num_blocks: Of the cache.
        precision: Of the weights. Models without a runner of their own are served as they were loaded.

    Returns:
        A runner that has not been checked yet: see `check_parity`.

    Raises:
        ModelError: The precision is not offered for this model.
    """
    for family, runner in _RUNNERS:
        if family.understands(model):
            packing = Packing(precision, activation_peaks(model) if precision == "int8" else {})
            return runner(model, num_blocks=num_blocks, packing=packing)
    return GenericRunner(model, num_blocks=num_blocks, precision=precision)
