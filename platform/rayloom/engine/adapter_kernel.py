"""One batch with many LoRA adapters in C++: every row with its own adapter's matrices, where these lie.

The idea of Punica's segmented gather (Chen et al., 2023) on a CPU: rows are taken by adapter, up to eight at a time,
so that matrices are read once for them. A row's result does not depend on which others it is taken with.

Shape letters: T tokens of a step, A of them with an adapter, K items, I input width, O output width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.adapter_tables import LoraTable
from rayloom.engine.kernels.library import native

_MOST_ROWS = 8
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


class _Part(ctypes.Structure):
    """``LoraPart`` in lora.cpp."""

    _fields_ = (
        *(("downs", _POINTER), ("ups", _POINTER), ("scales", _POINTER), ("ranks", _POINTER)),
        *(("max_rank", _LONG), ("first", _LONG), ("width", _LONG)),
    )


class _Layers(ctypes.Structure):
    """``LoraLayers`` there."""

    _fields_ = (
        *(("parts", _POINTER), ("num_parts", _LONG), ("in_features", _LONG), ("width", _LONG)),
        *(("row_work", _LONG), ("weight_bytes", _LONG)),
    )


class _Rows(ctypes.Structure):
    """``LoraRows`` there."""

    _fields_ = (("rows", _POINTER), ("items", _POINTER), ("num_items", _LONG), ("num_rows", _LONG))


class RowItems:
    """How a step's rows are taken together. The same for every layer.

    Args:
        adapters: Adapter index of each row, -1 for none.

    Attributes:
        rows_A: Rows of the step that have an adapter, by adapter.
        items_K3: ``(K, 3)``: adapter, first place in `rows_A`, and how many from there on: 1, 2, 4 or 8.
    """

    def __init__(self, adapters: npt.NDArray[np.int64]) -> None:
        active = np.flatnonzero(adapters >= 0)
        rows = active[np.argsort(adapters[active], kind="stable")]
        self.rows_A = rows.astype(np.int32)
        self.items_K3 = np.array(_items(adapters[rows]), np.int32)
        sizes = len(self.items_K3), len(self.rows_A)
        self._rows = _Rows(self.rows_A.ctypes.data, self.items_K3.ctypes.data, *sizes)
        self.address = ctypes.addressof(self._rows)


class LayerGroup:
    """Layers with the same input, whose outputs lie side by side. Good for as long as their tables are.

    Args:
        tables: Of each layer that any adapter changes, with the place of its first output feature.
        width: O, of all layers.

    Attributes:
        tables: As given.
        indices: Adapters that change any of the layers.
        has_kernel: Whether `add` works here.
    """

    def __init__(self, tables: Sequence[tuple[LoraTable, int]], width: int) -> None:
        self.tables, self._width = tuple(tables), width
        self.indices = frozenset[int]().union(*(table.indices for table, _ in tables))
        self.has_kernel = native() is not None and all(table.downs_MRI.is_cpu for table, _ in tables)

    def add(self, items: RowItems, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add each row's adapter to the layers' output, in place.

        Args:
            items: The rows.
            x_TI: Input, contiguous float32.
            y_TO: Output of all the layers, contiguous float32.
        """
        # Between two products nothing of Python's is in the processor's caches, so every look-up here is a slow one.
        self._function(y_TO.data_ptr(), x_TI.data_ptr(), self._address, items.address)

    @cached_property
    def _function(self) -> ctypes._NamedFuncPointer:
        library = native()
        assert library is not None
        return library.lora_add

    @cached_property
    def _address(self) -> int:
        return ctypes.addressof(self._layers)

    @cached_property
    def _layers(self) -> _Layers:
        tables = [table for table, _ in self.tables]
        work = sum(side[0].numel() for table in tables for side in (table.downs_MRI, table.ups_MRO))
        sizes = len(tables), tables[0].downs_MRI.shape[2], self._width, work, tables[0].downs_MRI.itemsize
        return _Layers(ctypes.addressof(self._parts), *sizes)

    @cached_property
    def _parts(self) -> ctypes.Array[_Part]:
        return (_Part * len(self.tables))(*(_part(table, first) for table, first in self.tables))


def _part(table: LoraTable, first: int) -> _Part:
    tensors = table.downs_MRI, table.ups_MRO, table.scales_MR, table.ranks_M
    return _Part(*(each.data_ptr() for each in tensors), table.downs_MRI.shape[1], first, table.ups_MRO.shape[2])


def _items(owners: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Rows' ascending adapters as runs of 8, 4, 2 or 1: what the kernel has registers for."""
    items: list[tuple[int, int, int]] = []
    first = 0
    for adapter, count in zip(*np.unique(owners, return_counts=True), strict=True):
        end = first + int(count)
        while first < end:
            taken = min(_MOST_ROWS, 1 << (end - first).bit_length() - 1)
            items.append((int(adapter), first, taken))
            first += taken
    return items
