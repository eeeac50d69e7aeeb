"""Compiling the C++ kernels for the machine at hand, once per machine, compiler, torch and source."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from rayloom.artifacts import cache_root

_NAME = "librayloom_kernels.so"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi")
_EXTRA = {
    # Separate products and sums: the int8 results then have the bits of the torch path.
    "linear.cpp": ("-ffp-contract=off",),
}


class BuildError(Exception):
    """The kernels cannot be compiled here. The torch paths do their work."""


def build() -> Path:
    """The compiled library, from the cache if it was built before.

    ``RAYLOOM_KERNELS_FLAGS`` (default ``-march=native``) are the compiler flags that choose the instruction set.

    Raises:
        BuildError: No compiler, or it failed.
    """
    machine = tuple(os.environ.get("RAYLOOM_KERNELS_FLAGS", "-march=native").split())
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise BuildError("no C++ compiler (g++) on this machine")
    try:
        version = _run([compiler, "--version"])
        folder = cache_root() / "kernels" / _digest(compiler, version, machine)
        library = folder / _NAME
        if library.exists():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not library.exists():
                _compile(compiler, machine, library)
    except OSError as error:
        raise BuildError(f"the kernels cannot be built: {error}") from error
    return library


def _compile(compiler: str, machine: tuple[str, ...], library: Path) -> None:
    """Compile into a folder beside the library, then move it there in one step."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects = []
        for source in sorted(_sources().glob("*.cpp")):
            objects.append(f"{scratch}/{source.stem}.o")
            extra = _EXTRA.get(source.name, ())
            _run([compiler, *_FLAGS, *machine, *extra, "-c", str(source), "-o", objects[-1]])
        target = Path(scratch) / _NAME
        _run([compiler, "-shared", *objects, "-o", str(target), *_openmp()])
        target.replace(library)


def _openmp() -> tuple[str, ...]:
    """Linker flags for torch's own OpenMP, so that torch and the kernels share one team of threads."""
    folder = Path(torch.__file__).parent / "lib"
    bundled = sorted(folder.glob("libgomp*.so*"))
    return (str(bundled[0]), f"-Wl,-rpath,{folder}") if bundled else ("-fopenmp",)


def _digest(compiler: str, version: str, machine: tuple[str, ...]) -> str:
    """A name for everything that the compiled library depends on."""
    content = hashlib.sha256()
    for source in sorted((*_sources().glob("*.cpp"), *_sources().glob("*.h"))):
        content.update(source.name.encode() + source.read_bytes())
    for part in (compiler, version, *machine, *_openmp(), torch.__version__, str(_EXTRA), *_FLAGS, _cpu()):
        content.update(part.encode() + b"\0")
    return content.hexdigest()[:24]


def _sources() -> Path:
    return Path(__file__).parent


@functools.cache
def _cpu() -> str:
    """Architecture and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {flags}"


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed: {result.stderr.strip()[-2000:]}")
    return result.stdout
