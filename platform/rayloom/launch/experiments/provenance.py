"""What figures are taken on: the machine, its load, and the versions of what costs time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from rayloom.artifacts import code_version
from rayloom.evaluation.units import size
from rayloom.launch.experiments.records import Provenance

_LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "peft")


def provenance_now() -> Provenance:
    """Of this machine at this moment."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # deepspeed is there on Linux only
            continue
    return Provenance(
        machine=machine_text(),
        versions=versions,
        code=code_version(),
        load=round(os.getloadavg()[0], 2),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def machine_text() -> str:
    """Processor, cores, memory, and the GPU if there is one."""
    parts = [_processor(), f"{os.cpu_count()} cores", f"{size(psutil.virtual_memory().total)} of memory"]
    parts += [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else ["no GPU"]
    return ", ".join(parts)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
