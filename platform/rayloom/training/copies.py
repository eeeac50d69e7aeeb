"""Copies of what training changes, for whoever writes them down beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_SMALL_BYTES = 1 << 30


def is_small(tensors: Iterable[Tensor]) -> bool:
    """Whether a copy of all may lie in memory; what is larger is written while training waits."""
    return sum(tensor.nbytes for tensor in tensors) <= _SMALL_BYTES


class Copies:
    """Copies of tensors at one moment after another, in memory that is kept for the next ones.

    Fresh memory would be taken from what the following steps need, and finding them more costs as much as the copying.
    """

    def __init__(self) -> None:
        self._free: list[list[Tensor]] = []

    def take(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies on the CPU that nothing else changes, until they are given back."""
        places = self._free.pop() if self._free else []
        if list(map(_form, places)) != list(map(_form, tensors)):  # an optimizer has no moments before its first step
            places = [torch.empty_like(each, device="cpu") for each in tensors]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor.detach())
        return places

    def give_back(self, places: list[Tensor]) -> None:
        """Nobody reads these any more; one set of them is kept. Called on any thread."""
        self._free = [places]


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
