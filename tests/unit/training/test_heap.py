"""Training keeps the memory that it has freed."""

from __future__ import annotations

import multiprocessing
import platform
import resource

import pytest

from rayloom.training import keep_freed_memory

_BYTES = 100 << 20

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
