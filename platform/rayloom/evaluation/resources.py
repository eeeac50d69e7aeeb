"""What a model costs: latency, throughput, memory, disk, training."""

from __future__ import annotations

import math
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rayloom.config import EvaluationConfig
from rayloom.data import PromptInput
from rayloom.evaluation.results import Resources, Throughput
from rayloom.generation import TextGenerator

_TRAINING_FIGURES = ("train_", "tokens_per_s", "peak_", "steps", "step", "epoch", "num_workers")


def measure_resources(
    generator: TextGenerator,
    inputs: Sequence[PromptInput],
    *,
    config: EvaluationConfig,
    params: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Resources:
    """Time the model on the given prompts, and look up the rest.

    Args:
        generator: The model.
        inputs: Prompts; the first ``latency_prompts`` are timed.
        config: Number of prompts, batch sizes.
        params: Generation parameters.
        progress: Told the number of prompts of each finished measurement.
    """
    prompts = list(inputs[: config.latency_prompts])
    told = progress or (lambda _: None)
    latencies = _latencies(generator, prompts, params or {}, told)
    throughput = [
        _throughput(generator, prompts, size, params or {}, told) for size in config.throughput_batch_sizes if prompts
    ]
    artifact = generator.artifact
    return Resources(
        device=device_name(generator.device),
        num_parameters=_num_parameters(generator),
        dtype=generator.precision,
        size_on_disk_bytes=folder_bytes(artifact.path) if artifact is not None else None,
        peak_host_bytes=peak_host_bytes(),
        peak_gpu_bytes=_peak_gpu_bytes(generator.device),
        latency_p50_s=percentile(latencies, 0.50) if latencies else None,
        latency_p95_s=percentile(latencies, 0.95) if latencies else None,
        num_latency_prompts=len(latencies),
        throughput=throughput,
        training=training_figures(artifact.manifest.metrics) if artifact is not None else {},
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest ranks, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_host_bytes() -> int:
    """Most resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage tells of the parent's memory too where a process was started out of a large one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def device_name(device: torch.device) -> str:
    """``cpu`` with its threads, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def training_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of an artifact's metrics that say what its training cost."""
    return {name: value for name, value in metrics.items() if name.startswith(_TRAINING_FIGURES)}


def _latencies(
    generator: TextGenerator,
    prompts: Sequence[PromptInput],
    params: Mapping[str, Any],
    told: Callable[[int], None],
) -> list[float]:
    if prompts:
        generator.run(prompts[:1], params, batch_size=1)  # warm-up
    seconds = []
    for prompt in prompts:
        seconds.append(_timed(generator, [prompt], params, 1)[0])
        told(1)
    return seconds


def _throughput(
    generator: TextGenerator,
    prompts: Sequence[PromptInput],
    batch_size: int,
    params: Mapping[str, Any],
    told: Callable[[int], None],
) -> Throughput:
    seconds, num_tokens = _timed(generator, prompts, params, batch_size)
    told(len(prompts))
    return Throughput(batch_size=batch_size, prompts_per_s=len(prompts) / seconds, tokens_per_s=num_tokens / seconds)


def _timed(
    generator: TextGenerator, prompts: Sequence[PromptInput], params: Mapping[str, Any], batch_size: int
) -> tuple[float, int]:
    start = time.perf_counter()
    outputs = generator.run(prompts, params, batch_size=batch_size)  # ends with ids on the host: nothing is pending
    seconds = time.perf_counter() - start
    return seconds, sum(len(sequence.token_ids) for output in outputs for sequence in output.sequences)


def _num_parameters(generator: TextGenerator) -> int | None:
    if generator.precision != "fp32":
        return None  # only the engine's weights are kept, in a layout of their own
    return sum(parameter.numel() for parameter in generator.model.parameters())


def _peak_gpu_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
