"""Workers on CPUs start with an allocator that keeps what was freed, and fits tensors of many sizes into it."""

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
MANY_SIZES = """
import pathlib, random, resource, torch
draw = random.Random(0)
def step():
    # What training does: many tensors of changing sizes, some of which stay until the next step.
    return [torch.ones(draw.randrange(1 << 16, 1 << 20)) for _ in range(100)][::10]
kept = step()
for _ in range(20):
    kept = step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    kept = step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print("libjemalloc" in pathlib.Path("/proc/self/maps").read_text())
"""

needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="this wheel of Ray brings no jemalloc")


@needs_library
def test_a_worker_finds_its_memory_once():
    bare = {name: value for name, value in os.environ.items() if name not in heap_environment()}
    faults = {}
    for added in ({}, heap_environment()):
        done = subprocess.run(
            [sys.executable, "-c", MANY_SIZES], env=bare | added, capture_output=True, check=True, text=True
        )
        assert done.stderr == ""
        found, loaded = done.stdout.split()
        assert loaded == str(bool(added))
        faults[loaded] = int(found)
    assert faults["True"] < faults["False"] / 10


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
