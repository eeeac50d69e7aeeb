"""Training keeps the memory that it has freed."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rayloom.training import HUGE_PAGES, keep_freed_memory

_BYTES = 100 << 20

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS_OF_A_TENSOR = """
import resource, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told")


def faults_of_a_second_buffer(keep: bool) -> int:
    """Pages that the system has to find for a buffer as large as one that was freed before it."""
    if keep:
        assert keep_freed_memory()
    bytearray(_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(_BYTES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
@pytest.mark.parametrize("keep", [False, True])
def test_a_buffer_takes_the_pages_of_the_one_before_it(keep):
    # In a process of its own: the heap of this one should stay as it is.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        faults = pool.apply(faults_of_a_second_buffer, (keep,))
    assert (faults < 100) is keep


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(), reason="huge pages are not there for the asking"
)
@pytest.mark.parametrize("huge", [False, True])
def test_large_tensors_lie_in_huge_pages(huge):
    environment = {name: value for name, value in os.environ.items() if name not in HUGE_PAGES}
    environment |= HUGE_PAGES if huge else {}
    done = subprocess.run([sys.executable, "-c", FAULTS_OF_A_TENSOR], env=environment, capture_output=True, check=True)
    assert (int(done.stdout) < 20_000) is huge, "32,768 pages of 4 KiB"
