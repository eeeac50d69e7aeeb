"""The memory allocator of workers that train on CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from rayloom.training import HUGE_PAGES

_KEEP_FREED = "dirty_decay_ms:-1,muzzy_decay_ms:-1"
"""jemalloc's words for never giving memory back to the system."""


def heap_environment() -> dict[str, str]:
    """Environment of a process that is about to start and train on CPUs.

    The batches of a run have many shapes. glibc's heap grows with them, since a freed tensor's room rarely fits the
    next one's; jemalloc rounds sizes, so that it does, and the system has to find fewer pages. Ray's wheels for Linux
    bring it along. Whoever preloads something keeps that, and has glibc's heap as `keep_freed_memory` leaves it, as has
    a node where the library lies elsewhere.
    """
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    if "LD_PRELOAD" in os.environ or not library.is_file():
        return dict(HUGE_PAGES)
    return HUGE_PAGES | {"LD_PRELOAD": str(library), "MALLOC_CONF": _KEEP_FREED}
