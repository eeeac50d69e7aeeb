"""Memory that the processes of one machine share, and in which they wait for each other."""

from __future__ import annotations

import mmap
import os
import platform
import time
import uuid

import numpy as np
import torch
from torch import Tensor

from rayloom.errors import TrainingError
from rayloom.training import distributed

PAGE_BYTES = 4096
"""What is laid out in shared memory begins at multiples of this."""
_ORDERED = ("x86_64", "AMD64")
"""Machines on which others see a process's writes in their order; elsewhere a counter may be seen before the data."""
_LINE = 8
"""Counters that share a cache line: each rank writes into one of its own."""
_EAGER_S, _LATE_S = 0.002, 1800.0
"""How long to wait without sleeping, and at all."""


class SharedMemory:
    """Zeros at first; tensors are taken from it one after the other, in the same order on all ranks.

    Args:
        memory: Shared by all ranks.
    """

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory, self._used = memory, 0
        self._rank = distributed.rank()
        counters = self.take(torch.int64, distributed.world_size() * _LINE).numpy()
        self._met: np.ndarray[tuple[int], np.dtype[np.int64]] = counters[::_LINE]

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """The next tensor."""
        count = int(np.prod(shape))
        place = torch.frombuffer(self._memory, dtype=dtype, offset=self._used, count=count)
        self._used += room_for(dtype, *shape)
        return place.view(shape)

    def meet(self) -> None:
        """Wait for all ranks, here in memory: gloo's barrier takes half a millisecond. Collective.

        Raises:
            TrainingError: Some rank did not come.
        """
        mine = self._met[self._rank] + 1
        self._met[self._rank] = mine
        begin, pause_s = time.monotonic(), 0.0
        while self._met.min() < mine:
            time.sleep(pause_s)  # gives the core to whoever is late
            waited_s = time.monotonic() - begin
            if waited_s > _LATE_S:
                raise TrainingError(f"a worker did not come to the exchange of gradients in {waited_s:.0f} s")
            pause_s = 0.0 if waited_s < _EAGER_S else 1e-4


def room_for(dtype: torch.dtype, *shape: int) -> int:
    """Bytes that a tensor takes in shared memory."""
    return -(-int(np.prod(shape)) * dtype.itemsize // PAGE_BYTES) * PAGE_BYTES


def shared_memory(num_bytes: int) -> SharedMemory | None:
    """Memory for all ranks. Collective.

    It has no name in any folder, so that a crash leaves nothing behind, and does not count towards the size of
    /dev/shm, of which containers often have 64 MiB only.

    Args:
        num_bytes: Size, see `room_for`; what is never written takes no memory.

    Returns:
        None where ranks are on several machines or in containers apart, on machines that are not x86, and where the
        system has no such memory.
    """
    name = distributed.gather_objects(f"rayloom-{uuid.uuid4().hex}")[0]
    num_bytes += room_for(torch.int64, distributed.world_size() * _LINE)
    first = distributed.rank() == 0
    descriptor = _created(name, num_bytes) if first else None
    path = distributed.gather_objects(f"/proc/{os.getpid()}/fd/{descriptor}")[0]
    try:
        memory = _mapped(f"/proc/self/fd/{descriptor}" if first else path, name, num_bytes)
        suits = all(distributed.gather_objects(memory is not None))
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return SharedMemory(memory) if suits and memory is not None else None


def _created(name: str, num_bytes: int) -> int | None:
    if platform.machine() not in _ORDERED or not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create(name)
        os.truncate(descriptor, num_bytes)
    except OSError:
        return None
    return descriptor


def _mapped(path: str, name: str, num_bytes: int) -> mmap.mmap | None:
    """The memory behind a process's open file; None where that process is not here, or another one has its number."""
    try:
        if name not in os.readlink(path):
            return None
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), num_bytes)
    except OSError:
        return None
