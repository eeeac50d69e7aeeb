"""Gradients averaged over the processes of one machine, through memory that they share.

On CPUs, gloo sends gradients through sockets: copies into the system and out of it, computed by the cores that train.
Here a process writes its gradients into shared memory, a part at a time, adds up its share of that part over all
processes, and reads the means back. Sums are made in the order of ranks, so they do not depend on who comes first.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayloom.errors import TrainingError
from rayloom.training import distributed

_FOLDER = Path("/dev/shm")
_BYTES = 8 << 20
"""Of shared memory, over all processes: chunks stay in the cache, and containers often have 64 MiB only."""
_ORDERED = ("x86_64", "AMD64")
"""Machines on which others see a process's writes in their order; elsewhere a counter may be seen before the data."""
_FLOAT_BYTES = 4
_LINE = 8
"""Counters that share a cache line: each rank writes into one of its own."""
_HEAD_BYTES = 1 << 16
"""Room for the counters of all ranks."""
_EAGER_S, _LATE_S = 0.002, 1800.0
"""How long to wait without sleeping, and at all."""


@dataclass(frozen=True)
class Piece:
    """Part of a tensor that lies in one chunk: ``tensors[index].view(-1)[start:stop]`` at ``place``."""

    index: int
    start: int
    stop: int
    place: int

    @property
    def length(self) -> int:
        """Elements."""
        return self.stop - self.start

    def of(self, chunk: Tensor) -> Tensor:
        """This piece of a chunk."""
        return chunk[self.place : self.place + self.length]


def chunks_of(sizes: Sequence[int], length: int) -> list[list[Piece]]:
    """Tensors one after the other, cut into chunks of at most ``length`` elements."""
    chunks: list[list[Piece]] = [[]]
    place = 0
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            if place == length:
                chunks.append([])
                place = 0
            stop = min(size, start + length - place)
            chunks[-1].append(Piece(index, start, stop, place))
            place += stop - start
            start = stop
    return chunks


class SharedMean:
    """Averages the gradients of a module over all ranks; made by `shared_mean`.

    Args:
        parameters: Those that are trained, the same on all ranks.
        memory: Shared by all ranks, of at least `_BYTES`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], memory: mmap.mmap) -> None:
        self._parameters = list(parameters)
        world = distributed.world_size()
        # Two sets of places in turn, also from step to step: who is ahead writes its next chunk while others still read
        # the means of this one.
        self._turn = 0
        self._length = (_BYTES - _HEAD_BYTES) // _FLOAT_BYTES // (2 * world)
        count = 2 * world * self._length
        places = torch.frombuffer(memory, dtype=torch.float32, offset=_HEAD_BYTES, count=count)
        self._places = places.view(2, world, self._length)
        self._met = np.frombuffer(memory, dtype=np.int64, count=world * _LINE)[::_LINE]
        self._has = torch.zeros(len(self._parameters))
        sizes = [self._has.numel(), *(p.numel() for p in self._parameters)]
        self._chunks = chunks_of(sizes, self._length)

    def average(self) -> None:
        """Put the mean over all ranks in the place of each gradient. Collective.

        A parameter that has a gradient on some ranks only counts as zero on the others.
        """
        self._has.copy_(torch.tensor([float(p.grad is not None) for p in self._parameters]))
        gradients = [_dense(parameter) for parameter in self._parameters]
        flat = [self._has, *(gradient.view(-1) for gradient in gradients)]
        for chunk in self._chunks:
            self._turn = 1 - self._turn
            self._exchange(self._places[self._turn], chunk, flat)
        for parameter, used in zip(self._parameters, self._has.tolist(), strict=True):
            if not used:
                parameter.grad = None

    def _meet(self) -> None:
        """Wait for all ranks, here in memory: gloo's barrier takes half a millisecond, and there are many of these."""
        mine = self._met[distributed.rank()] + 1
        self._met[distributed.rank()] = mine
        begin, pause_s = time.monotonic(), 0.0
        while self._met.min() < mine:
            time.sleep(pause_s)  # gives the core to whoever is late
            waited_s = time.monotonic() - begin
            if waited_s > _LATE_S:
                raise TrainingError(f"a worker did not come to the exchange of gradients in {waited_s:.0f} s")
            pause_s = 0.0 if waited_s < _EAGER_S else 1e-4

    def _exchange(self, places: Tensor, chunk: Sequence[Piece], flat: Sequence[Tensor]) -> None:
        for piece in chunk:
            piece.of(places[distributed.rank()]).copy_(flat[piece.index][piece.start : piece.stop])
        self._meet()
        length = chunk[-1].place + chunk[-1].length
        share = -(-length // len(places))
        begin = min(length, distributed.rank() * share)
        mean = places[0, begin : min(length, begin + share)]  # only this rank touches this part of the sum
        for other in places[1:]:
            mean += other[begin : begin + len(mean)]
        mean /= len(places)
        self._meet()
        for piece in chunk:
            flat[piece.index][piece.start : piece.stop] = piece.of(places[0])


def _dense(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient in one piece; zeros where it has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    elif not parameter.grad.is_contiguous():
        parameter.grad = parameter.grad.contiguous()
    return parameter.grad


def shared_mean(module: nn.Module) -> SharedMean | None:
    """What averages a module's gradients, after its weights were made equal to those of rank 0. Collective.

    Returns:
        None where ranks are on several machines or in containers apart, on machines that are not x86 or lack shared
        memory, and where a trained parameter is not float32.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    suits = platform.machine() in _ORDERED and all(p.dtype == torch.float32 for p in trained)
    with _shared_memory() as memory:
        if not all(distributed.gather_objects(suits and memory is not None)):
            return None
    assert memory is not None
    for tensor in (*module.parameters(), *module.buffers()):
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, src=0)
        tensor.detach().copy_(dense)
    return SharedMean(trained, memory)


@contextlib.contextmanager
def _shared_memory() -> Iterator[mmap.mmap | None]:
    """Memory that all ranks see, None on those that do not. Its name goes at once: a crash leaves nothing behind."""
    name = f"rayloom-{uuid.uuid4().hex}" if distributed.rank() == 0 else ""
    path = _FOLDER / distributed.gather_objects(name)[0]
    memory = _mapped(path, create=True) if distributed.rank() == 0 else None
    try:
        distributed.gather_objects(None)  # it is there now
        yield memory if distributed.rank() == 0 else _mapped(path, create=False)
    finally:
        if distributed.rank() == 0:
            path.unlink(missing_ok=True)


def _mapped(path: Path, *, create: bool) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            if create:
                os.posix_fallocate(descriptor, 0, _BYTES)  # to touch pages that are not there would kill the process
            return mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return None
