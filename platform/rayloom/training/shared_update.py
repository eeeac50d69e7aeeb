"""Data-parallel training on CPUs of one machine: weights that all processes share, each updating its part of them.

gloo would send gradients through sockets: copies into the system and out of it, computed by the cores that train. Here
weights, moments and every process's gradients lie in memory that all see. A process adds up its share of the gradients,
in the order of ranks, so that sums do not depend on who comes first, and updates its share of the weights; the
optimizer's work is divided as in ZeRO 1 (Rajbhandari et al., 2020), and nothing is sent back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rayloom.training import distributed
from rayloom.training.shared_memory import SharedMemory, room_for, shared_memory

_ALIGNED = 16
"""Elements: parameters begin at cache lines, and shares end there, so that an update's vectors are cut as of old."""
_CHUNK = 1 << 18
"""Elements that are added up at a time, few enough to stay in the cache."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that one rank updates: ``parameters[index].view(-1)[start:stop]``."""

    index: int
    start: int
    stop: int


def pieces_of(sizes: Sequence[int], rank: int, world: int) -> list[Piece]:
    """A rank's share of parameters that lie one after the other, each at a multiple of `_ALIGNED`."""
    share = _aligned(-(-sum(map(_aligned, sizes)) // world))
    begin, end = rank * share, (rank + 1) * share
    pieces, place = [], 0
    for index, size in enumerate(sizes):
        start, stop = max(0, begin - place), min(size, end - place)
        if start < stop or (size == rank == 0):  # the steps of an empty one are counted, too
            pieces.append(Piece(index, start, stop))
        place += _aligned(size)
    return pieces


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class SharedUpdate:
    """Takes the place of an optimizer's own step; made by `shared_update`.

    Gradients leave their parameters as soon as they are whole. The optimizer's state goes on being the whole model's,
    so that any rank can save it; a rank steps an optimizer of its own, over its pieces.

    Args:
        optimizer: AdamW over float32 parameters, the same on all ranks.
        memory: Of `bytes_of` bytes.
    """

    def __init__(self, optimizer: Optimizer, memory: SharedMemory) -> None:
        self._optimizer, self._memory = optimizer, memory
        self._parameters = _parameters_of(optimizer)
        sizes = [p.numel() for p in self._parameters]
        self._rank, world = distributed.rank(), distributed.world_size()
        self._has = memory.take(torch.uint8, world, len(sizes))
        self._squares = memory.take(torch.float64, world)
        self._steps = memory.take(torch.float32, len(sizes))
        weights, *moments = [self._places(memory, sizes) for _ in ("weights", *_MOMENTS)]
        self._moments = dict(zip(_MOMENTS, moments, strict=True))
        self._gradients = [self._places(memory, sizes) for _ in range(world)]
        self._pieces = pieces_of(sizes, self._rank, world)
        for index, (parameter, place) in enumerate(zip(self._parameters, weights, strict=True)):
            place = place.view(parameter.shape)
            if self._rank == 0:
                place.copy_(parameter.detach())
            parameter.data = place
            parameter.register_post_accumulate_grad_hook(self._keeper(index))  # type: ignore[no-untyped-call]
        memory.meet()
        self._masters = [nn.Parameter(weights[piece.index][piece.start : piece.stop]) for piece in self._pieces]
        self._mine = self._share_of(optimizer)
        self.adopt()

    @staticmethod
    def _places(memory: SharedMemory, sizes: Sequence[int]) -> list[Tensor]:
        flat = memory.take(torch.float32, sum(map(_aligned, sizes)))
        places, begin = [], 0
        for size in sizes:
            places.append(flat[begin : begin + size])
            begin += _aligned(size)
        return places

    def _keeper(self, index: int) -> Callable[[Tensor], None]:
        has, place = self._has[self._rank], self._gradients[self._rank][index]

        def keep(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, whole = parameter.grad, place.view(parameter.shape)
            if has[index]:
                whole.add_(gradient)
            else:
                whole.copy_(gradient)
                has[index] = 1
            parameter.grad = None  # its memory is still in the cache, and the next gradient takes it

        return keep

    def _share_of(self, optimizer: Optimizer) -> Optimizer:
        numbers = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            indices = {numbers[id(parameter)] for parameter in group["params"]}
            mine = [m for piece, m in zip(self._pieces, self._masters, strict=True) if piece.index in indices]
            groups.append({**group, "params": mine})
        return AdamW(groups, fused=True)

    def adopt(self) -> None:
        """Move the optimizer's state, as it was loaded or as it begins, into shared memory. Collective."""
        for index, parameter in enumerate(self._parameters):
            state = self._optimizer.state[parameter]
            self._steps[index] = state.get("step", 0.0)
            places = {"step": self._steps[index]}
            for name, moments in self._moments.items():
                places[name] = moments[index].view(parameter.shape)
                places[name].copy_(state[name]) if name in state else places[name].zero_()
            self._optimizer.state[parameter] = places
        for piece, master in zip(self._pieces, self._masters, strict=True):
            # Several ranks may have pieces of a parameter; the first one's count of steps is the parameter's.
            step = self._steps[piece.index]
            self._mine.state[master] = {"step": step if piece.start == 0 else step.clone()} | {
                name: moments[piece.index][piece.start : piece.stop] for name, moments in self._moments.items()
            }
        self._memory.meet()

    def update(self, learning_rate: float, *, max_norm: float, skip_non_finite: bool) -> Tensor:
        """Average gradients over all ranks, clip, step, and clear them. Collective.

        A parameter that has a gradient on some ranks only counts as zero on the others; one without any stays as it is.

        Args:
            learning_rate: Of this step.
            max_norm: Largest norm of the gradients together.
            skip_non_finite: Leave the update out where that norm is not finite.

        Returns:
            The norm before clipping.
        """
        for index in (self._has[self._rank] == 0).nonzero().flatten().tolist():
            self._gradients[self._rank][index].zero_()
        self._memory.meet()
        used = self._has.amax(dim=0).bool().tolist()
        self._squares[self._rank] = sum(self._average(piece) for piece in self._pieces if used[piece.index])
        self._memory.meet()
        self._has[self._rank].zero_()
        norm = self._squares.sum().sqrt().float()
        if not skip_non_finite or torch.isfinite(norm):
            self._step(learning_rate, used, scale=max_norm / (float(norm) + 1e-6))
        self._memory.meet()
        return norm

    def _average(self, piece: Piece) -> float:
        """Put the mean where the first rank's gradients are; returns the sum of its squares."""
        squares = 0.0
        for begin in range(piece.start, piece.stop, _CHUNK):
            end = min(begin + _CHUNK, piece.stop)
            mean, *others = [gradients[piece.index][begin:end] for gradients in self._gradients]
            for other in others:
                mean += other
            mean /= len(self._gradients)
            squares += float(mean.dot(mean))
        return squares

    def _step(self, learning_rate: float, used: Sequence[bool], *, scale: float) -> None:
        for piece, master in zip(self._pieces, self._masters, strict=True):
            mean = self._gradients[0][piece.index][piece.start : piece.stop]
            master.grad = mean if used[piece.index] else None
            if master.grad is not None and not scale >= 1.0:
                master.grad *= scale
        for group in self._mine.param_groups:
            group["lr"] = learning_rate
        self._mine.step()


def bytes_of(sizes: Sequence[int], world: int) -> int:
    """Shared memory for parameters of so many elements."""
    flat = room_for(torch.float32, sum(map(_aligned, sizes)))
    flags, squares = room_for(torch.uint8, world, len(sizes)), room_for(torch.float64, world)
    steps = room_for(torch.float32, len(sizes))
    return flags + squares + steps + (1 + len(_MOMENTS) + world) * flat


def shared_update(module: nn.Module, optimizer: Optimizer) -> SharedUpdate | None:
    """What updates a module's weights, after these were made equal to those of rank 0. Collective.

    Args:
        module: On the CPU.
        optimizer: AdamW over what is trained of it.

    Returns:
        None where there is no memory that all ranks see, and where a trained parameter is not float32.
    """
    trained = _parameters_of(optimizer)
    if any(p.dtype != torch.float32 for p in trained):
        return None
    memory = shared_memory(bytes_of([p.numel() for p in trained], distributed.world_size()))
    if memory is None:
        return None
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for tensor in (*frozen, *module.buffers()):
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, src=0)
        tensor.detach().copy_(dense)
    return SharedUpdate(optimizer, memory)


def _parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
