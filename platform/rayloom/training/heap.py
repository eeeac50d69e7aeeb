"""The C library's heap of a process that trains on CPUs."""

from __future__ import annotations

import ctypes
import sys

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Environment of a process that trains on CPUs; torch reads it before its first large tensor. Large tensors then lie
in huge pages, where the system allows these (``madvise``, the usual setting, or ``always``): one fault instead of 512
finds memory for them, and small objects do not nibble at the room that a freed one leaves."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt`` parameters (malloc.h)."""
_NEVER, _LARGEST = -1, 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step, instead of giving it back to the system.

    A step allocates and frees the same large tensors again and again. By default glibc gets those from the system and
    gives them back each time, and the system has to find and zero every page anew: for a small model a good part of a
    step. The process then keeps the memory of its largest step until it ends; only tensors of a GiB and more are still
    given back.

    Returns:
        Whether it did: False where the C library is not glibc, whose heap is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
