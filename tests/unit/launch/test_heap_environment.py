"""Workers on CPUs start with an allocator that keeps what was freed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from rayloom.launch.heap import heap_environment
from rayloom.training import HUGE_PAGES

LIBRARY = Path(ray.__file__).parent / "core" / "libjemalloc.so"
SECOND_TENSOR = """
import pathlib, resource, torch
torch.set_num_threads(1)
torch.ones(32 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print("libjemalloc" in pathlib.Path("/proc/self/maps").read_text())
"""

needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="this wheel of Ray brings no jemalloc")


@needs_library
@pytest.mark.parametrize("told", [False, True])
def test_a_tensor_takes_the_pages_of_the_one_before_it(told):
    environment = {name: value for name, value in os.environ.items() if name not in heap_environment()}
    chosen = heap_environment()
    environment |= chosen if told else {"LD_PRELOAD": chosen["LD_PRELOAD"]}  # jemalloc by itself gives them back
    done = subprocess.run(
        [sys.executable, "-c", SECOND_TENSOR], env=environment, capture_output=True, check=True, text=True
    )
    faults, loaded = done.stdout.split()
    assert (loaded, done.stderr) == ("True", "")
    assert (int(faults) < 50) is told, "64 huge pages, or 32,768 of 4 KiB"


@needs_library
def test_what_is_preloaded_already_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so")
    assert heap_environment() == HUGE_PAGES
    monkeypatch.delenv("LD_PRELOAD")
    assert heap_environment()["LD_PRELOAD"] == str(LIBRARY)


def test_without_the_library_large_tensors_still_get_huge_pages(monkeypatch, tmp_path):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(ray, "__file__", str(tmp_path / "__init__.py"))
    assert heap_environment() == HUGE_PAGES
