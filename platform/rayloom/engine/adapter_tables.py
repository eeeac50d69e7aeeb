"""All adapters' matrices of one layer, side by side.

Shape letters: M adapters that fit, R rank, I input width of a layer, O output width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rayloom.engine.adapter_files import LoraPair
from rayloom.engine.linear import quantise_rows

_RANKS, _FEATURES = 8, 32  # the C++ kernel reads whole steps of these


@dataclass(frozen=True)
class LoraTable:
    """Adapters' matrices of a layer, zeros where an adapter has none or a lower rank.

    Rows in the tables lie `_FEATURES` apart, or a multiple, with zeros between.

    Attributes:
        downs_MRI: From the layer's input down to the rank.
        ups_MRO: Up to its output.
        scales_MR: float32: what is multiplied between the two; all one unless the matrices are int8.
        ranks_M: int32 on the CPU: each adapter's rank, rounded up to whole steps; 0 where it leaves the layer alone.
        indices: Adapters that change this layer.
    """

    downs_MRI: torch.Tensor
    ups_MRO: torch.Tensor
    scales_MR: torch.Tensor
    ranks_M: torch.Tensor
    indices: frozenset[int]

    @property
    def nbytes(self) -> int:
        """Address space, padding included."""
        sides = self.downs_MRI, self.ups_MRO
        return sum(len(side) * side.stride(0) * side.itemsize for side in sides)


@dataclass(frozen=True)
class TableKind:
    """What is common to all layers' tables.

    Attributes:
        num_adapters: M.
        dtype: float32, bfloat16, or int8: symmetric by rank.
        device: Where they lie.
    """

    num_adapters: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, rank: int, widths: tuple[int, int]) -> LoraTable:
        """A table without adapters. On CPUs, places that are never used take no memory.

        Args:
            rank: The highest that it has to hold.
            widths: Of the layer: I and O.
        """
        downs_MRI, ups_MRO = (
            self._zeros(_whole(rank, _RANKS), _whole(width, _FEATURES))[..., :width] for width in widths
        )
        scales_MR = torch.ones(downs_MRI.shape[:2], device=self.device)
        return LoraTable(downs_MRI, ups_MRO, scales_MR, torch.zeros(self.num_adapters, dtype=torch.int32), frozenset())

    def _zeros(self, rank: int, width: int) -> torch.Tensor:
        return torch.zeros(self.num_adapters, rank, width, dtype=self.dtype, device=self.device)


@torch.inference_mode()
def put(table: LoraTable | None, index: int, pair: LoraPair, kind: TableKind) -> LoraTable:
    """The table with one adapter more, wider if need be. Who uses the old one sees nothing of it.

    Args:
        table: None if no adapter changes this layer yet.
        index: A place that is free.
        pair: The adapter's matrices.
        kind: Of a new table.
    """
    rank, widths = len(pair.down_RI), (pair.down_RI.shape[1], pair.up_RO.shape[1])
    if table is None:
        table = kind.empty(rank, widths)
    elif table.downs_MRI.shape[1] < rank:
        table = _widened(table, kind.empty(rank, widths))
    down_RI, up_RO = pair.down_RI, pair.up_RO
    if kind.dtype is torch.int8:
        (down_RI, down_scale_R), (up_RO, up_scale_R) = quantise_rows(down_RI), quantise_rows(up_RO)
        table.scales_MR[index, :rank] = down_scale_R * up_scale_R
    table.downs_MRI[index, :rank] = down_RI
    table.ups_MRO[index, :rank] = up_RO
    return _with_rank(table, index, _whole(rank, _RANKS), table.indices | {index})


@torch.inference_mode()
def take(table: LoraTable, index: int) -> LoraTable | None:
    """The table without an adapter that nobody uses; None if it was the last."""
    if not (left := table.indices - {index}):
        return None
    table.downs_MRI[index] = 0
    table.ups_MRO[index] = 0
    return _with_rank(table, index, 0, left)


def _widened(old: LoraTable, new: LoraTable) -> LoraTable:
    rank = old.downs_MRI.shape[1]
    for index in old.indices:  # the rest is left untouched, and so takes no memory
        new.downs_MRI[index, :rank] = old.downs_MRI[index]
        new.ups_MRO[index, :rank] = old.ups_MRO[index]
        new.scales_MR[index, :rank] = old.scales_MR[index]
    return replace(new, ranks_M=old.ranks_M, indices=old.indices)


def _with_rank(table: LoraTable, index: int, rank: int, indices: frozenset[int]) -> LoraTable:
    ranks_M = table.ranks_M.clone()
    ranks_M[index] = rank
    return replace(table, ranks_M=ranks_M, indices=indices)


def _whole(size: int, step: int) -> int:
    return -(-size // step) * step
