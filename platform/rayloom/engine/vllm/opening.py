"""From a loaded transformers model to vLLM that serves it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import PreTrainedModel

from rayloom.engine.adapter_files import adaptable_layers, read_adapter
from rayloom.engine.opening import EngineOptions
from rayloom.engine.vllm.engine import VllmEngine
from rayloom.engine.vllm.process import Settings, VllmProcess, find_python
from rayloom.errors import ModelError

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Highest LoRA ranks that vLLM can be opened with."""


def open_vllm(
    model: PreTrainedModel, options: EngineOptions, device: torch.device, adapters: Mapping[str, Path]
) -> VllmEngine:
    """VLLM over a decoder model.

    Args:
        model: On any device; vLLM reads a copy from a temporary folder, and this one is not needed any more.
        options: See `EngineOptions`; vLLM fills its steps as it likes.
        device: Where vLLM computes.
        adapters: Folders of LoRA adapters of this model, by name.

    Raises:
        ModelError: There is no vLLM, or it cannot serve this model so.
    """
    if model.config.is_encoder_decoder:
        raise ModelError("engine vllm serves decoder models; an encoder-decoder model takes engine rayloom")
    if options.precision not in _DTYPES:
        raise ModelError(f"engine vllm computes in fp32 or bf16, not in {options.precision}")
    find_python()  # before anything is written
    with tempfile.TemporaryDirectory(prefix="rayloom-vllm-") as folder:
        model.save_pretrained(folder)
        arguments = {"model": folder} | _arguments(options, on_cpu=device.type == "cpu")
        process = VllmProcess(_settings(arguments | _lora(model, options, adapters), device))
    neutral = neutral_adapter(next(iter(adapters.values()))) if adapters else None
    return VllmEngine(process, max_sequences=options.max_sequences, adapters=adapters, neutral=neutral)


def neutral_adapter(like: Path) -> tempfile.TemporaryDirectory[str]:
    """An adapter that changes nothing, of the shape of another one.

    vLLM 0.32 for CPUs gives rows without an adapter some other row's, when both are in one batch: so nobody goes
    without one.

    Args:
        like: Folder of an adapter.

    Returns:
        Its folder, which is gone with this object.
    """
    folder = tempfile.TemporaryDirectory(prefix="rayloom-neutral-")
    shutil.copy(like / "adapter_config.json", folder.name)
    tensors = safetensors.torch.load_file(like / "adapter_model.safetensors")
    still = {name: torch.zeros_like(tensor) if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(still, Path(folder.name) / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _arguments(options: EngineOptions, *, on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[options.precision],
        "max_num_seqs": options.max_sequences,
        "skip_tokenizer_init": True,
        "scheduling_policy": "priority",
        "max_logprobs": -1,
        "enforce_eager": on_cpu,  # compiling is worth its minutes on GPUs
        "disable_log_stats": True,
    }
    return arguments | ({} if options.cache_bytes is None else {"kv_cache_memory_bytes": options.cache_bytes})


def _lora(model: PreTrainedModel, options: EngineOptions, adapters: Mapping[str, Path]) -> dict[str, Any]:
    if not adapters:
        return {}
    layers = adaptable_layers(model)
    highest = max(read_adapter(place, layers).rank for place in adapters.values())
    fitting = [rank for rank in _RANKS if rank >= highest]
    if not fitting:
        raise ModelError(f"engine vllm takes LoRA ranks up to {_RANKS[-1]}, not {highest}")
    count = min(len(adapters), options.max_adapters) + 1  # the neutral one
    return {"enable_lora": True, "max_loras": count, "max_lora_rank": fitting[0]}


def _settings(arguments: Mapping[str, Any], device: torch.device) -> Settings:
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if device.type == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return Settings(engine=arguments, threads=torch.get_num_threads(), environment=environment)
    if device.index:
        environment["CUDA_VISIBLE_DEVICES"] = str(device.index)
    return Settings(engine=arguments, environment=environment)
