"""One batch with many LoRA adapters: rows sorted by adapter and cut into tiles, each of one adapter.

So a layer takes two batched products whatever mixture of adapters the step holds: the idea of Punica's segmented gather
(Chen et al., 2023) in plain torch.

Shape letters: T tokens of a step, A of them with an adapter, I input width of a layer, O output width, M adapters that
fit, R rank, K tiles, S rows of a tile, P = K * S places of all tiles, H heights that are weighed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.adapter_tables import LoraTable

# Estimates, in rows' worth of arithmetic, of what a tile costs besides: copying an adapter's matrices out of the table,
# or reading them where they lie. Matrices come from memory, a row's sums are made in registers.
_COPY_ROWS = 8
_READ_ROWS = 3


@dataclass(frozen=True)
class RowTiles:
    """How a step's rows are cut into tiles of one adapter each. The same for every layer.

    Attributes:
        num_tiles: K.
        height: S. Places that no row takes hold any row; what comes of it is dropped.
        adapters_K: Adapter of each tile; None where tile k belongs to adapter k.
        rows_P: Row of the step in each place; None where place p holds row p.
        places_A: Places that are taken, ascending; None where all are.
        targets_A: Their rows of the step; None where these are all rows in order.
    """

    num_tiles: int
    height: int
    adapters_K: torch.Tensor | None
    rows_P: torch.Tensor | None
    places_A: torch.Tensor | None
    targets_A: torch.Tensor | None


def tile_rows(adapters: npt.NDArray[np.int64], device: torch.device) -> RowTiles:
    """Cut a step's rows into tiles.

    Args:
        adapters: Adapter index of each row, -1 for none; one row at least has one.
        device: Of the tensors.
    """
    active = np.flatnonzero(adapters >= 0)
    targets = active[np.argsort(adapters[active], kind="stable")]
    owners = adapters[targets]
    counts = np.bincount(owners)
    height, tiles = _cheapest(counts)
    num_tiles = int(tiles.sum())
    within = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    places = (np.cumsum(tiles) - tiles)[owners] * height + within
    rows = np.full(num_tiles * height, targets[0])
    rows[places] = targets
    return RowTiles(
        num_tiles=num_tiles,
        height=height,
        adapters_K=_unless_range(np.repeat(np.arange(len(counts)), tiles), num_tiles, device),
        rows_P=_unless_range(rows, len(adapters), device),
        places_A=_unless_range(places, len(rows), device),
        targets_A=_unless_range(targets, len(adapters), device),
    )


def add_tiles(table: LoraTable, tiles: RowTiles, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
    """See `LoraBank.add`; of one layer. The kernel does the same, in the same precision."""
    sides = table.downs_MRI, table.ups_MRO, table.scales_MR
    if tiles.adapters_K is None:
        downs_KRI, ups_KRO, scales_KR = (side[: tiles.num_tiles].float() for side in sides)
    else:
        downs_KRI, ups_KRO, scales_KR = (side.index_select(0, tiles.adapters_K).float() for side in sides)
    x_PI = x_TI if tiles.rows_P is None else x_TI.index_select(0, tiles.rows_P)
    x_KSI = x_PI.float().reshape(tiles.num_tiles, tiles.height, -1)
    reduced_KSR = x_KSI.bmm(downs_KRI.transpose(1, 2)) * scales_KR[:, None]
    change_PO = reduced_KSR.bmm(ups_KRO).flatten(0, 1)
    if tiles.places_A is not None:
        change_PO = change_PO.index_select(0, tiles.places_A)
    if tiles.targets_A is None:
        y_TO.add_(change_PO)
    else:
        y_TO.index_add_(0, tiles.targets_A, change_PO.to(y_TO.dtype))


def _cheapest(counts: npt.NDArray[np.int64]) -> tuple[int, npt.NDArray[np.int64]]:
    """Height of the tiles, and how many each adapter gets, by an estimate of the work (see `_COPY_ROWS`)."""
    most = int(counts.max())
    heights = np.unique(np.minimum(2 ** np.arange(most.bit_length() + 1), most))
    tiles_HM = -(-counts // heights[:, None])
    work_H = tiles_HM.sum(1) * (_COPY_ROWS + heights)
    if len(counts) * (_READ_ROWS + most) <= work_H.min():
        return most, np.ones_like(counts)  # one tile per place of the table: nothing is copied
    best = int(work_H.argmin())
    return int(heights[best]), tiles_HM[best]


def _unless_range(numbers: npt.NDArray[np.int64], length: int, device: torch.device) -> torch.Tensor | None:
    if len(numbers) == length and (numbers == np.arange(length)).all():
        return None
    return torch.from_numpy(numbers).to(device)
