"""Rows with their own adapters, by the kernel and in plain torch, against a loop over rows.

Shape letters: T rows, I input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayloom.engine import kernels
from rayloom.engine.adapter_files import LoraPair
from rayloom.engine.adapter_kernel import LayerGroup
from rayloom.engine.adapter_rows import StepRows
from rayloom.engine.adapter_tables import LoraTable, TableKind, put
from rayloom.engine.adapter_tiles import add_tiles, tile_rows

torch.set_num_threads(1)

CPU = torch.device("cpu")


def _random_table(rng: torch.Generator, most: int, widths: tuple[int, int], dtype: torch.dtype) -> LoraTable:
    """Adapters of several ranks; some leave the layer alone."""
    kind, table = TableKind(most, dtype, CPU), None
    for index in range(most):
        rank = int(torch.randint(0, 20, (1,), generator=rng))
        sides = [torch.randn(rank or 1, width, generator=rng) for width in widths]
        if rank or table is None:
            table = put(table, index, LoraPair(*sides), kind)
    assert table is not None
    return table


def _row_by_row(table: LoraTable, x_TI: torch.Tensor, y_TO: torch.Tensor, adapters: list[int]) -> torch.Tensor:
    wanted_TO = y_TO.clone()
    for row, adapter in enumerate(adapters):
        if adapter >= 0:
            downs, ups, scales = (side[adapter].double() for side in (table.downs_MRI, table.ups_MRO, table.scales_MR))
            wanted_TO[row] = (y_TO[row].double() + (downs @ x_TI[row].double() * scales) @ ups).float()
    return wanted_TO


def _by_tiles(tables: list[tuple[LoraTable, int]], x_TI: torch.Tensor, y_TO: torch.Tensor, rows: StepRows) -> None:
    for table, first in tables:
        add_tiles(table, rows.tiles, x_TI, y_TO[:, first : first + table.ups_MRO.shape[2]])


def _by_kernel(tables: list[tuple[LoraTable, int]], x_TI: torch.Tensor, y_TO: torch.Tensor, rows: StepRows) -> None:
    LayerGroup(tables, y_TO.shape[1]).add(rows.items, x_TI, y_TO)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def _draw_rows(numbers: np.random.Generator, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Adapters of rows: few or all of them, mixed or in order."""
    occurring = numbers.choice(np.arange(-1, most), int(numbers.integers(1, most + 2)), replace=False)
    adapters = numbers.choice(occurring, int(numbers.integers(1, 60)))
    if numbers.random() < 0.3:
        adapters.sort()
    return adapters


@pytest.mark.parametrize("add", [_by_tiles, _by_kernel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_equal_a_loop_over_rows(add: Callable[..., None], dtype: torch.dtype) -> None:
    if add is _by_kernel and not kernels.available():
        pytest.skip("no kernels on this machine")
    rng, numbers = torch.Generator().manual_seed(2), np.random.default_rng(2)
    for case in range(100):
        most = int(numbers.integers(1, 9))
        adapters = _draw_rows(numbers, most)
        width_in, *widths, gap = (int(n) for n in numbers.integers(1, 70 if case % 4 else 300, 4))
        tables = [_random_table(rng, most, (width_in, width), dtype) for width in widths]
        firsts = [3, 3 + widths[0] + gap]
        x_TI = torch.randn(len(adapters), width_in, generator=rng)
        y_TO = torch.randn(len(adapters), firsts[1] + widths[1] + 2, generator=rng)
        base = torch.from_numpy(adapters < 0)
        x_TI[base] = float("nan")  # must not reach other rows
        y_TO[base, 0] = -0.0
        before, wanted_TO = y_TO.clone(), y_TO.clone()
        for table, first, width in zip(tables, firsts, widths, strict=True):
            part = slice(first, first + width)
            wanted_TO[:, part] = _row_by_row(table, x_TI, y_TO[:, part], adapters.tolist())
        rows = StepRows(torch.from_numpy(adapters))
        if not rows.indices:
            assert base.all()
            continue
        add(list(zip(tables, firsts, strict=True)), x_TI, y_TO, rows)
        torch.testing.assert_close(y_TO, wanted_TO, rtol=1e-5, atol=1e-5 * (width_in * 20) ** 0.5)
        assert torch.equal(_bits(y_TO[base]), _bits(before[base]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_a_row_gets_from_the_kernel_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    if not kernels.available():
        pytest.skip("no kernels on this machine")
    rng, numbers = torch.Generator().manual_seed(3), np.random.default_rng(3)
    for width_in, width_out in ((576, 192), (37, 101), (64, 5), (300, 600)):
        table = _random_table(rng, 4, (width_in, width_out), dtype)
        x_TI, y_TO = (torch.randn(40, width, generator=rng) for width in (width_in, width_out))
        alone_TO = torch.empty_like(y_TO)
        adapters = numbers.integers(0, 4, 40)
        for row in range(40):
            one = y_TO[row : row + 1].clone()
            _by_kernel([(table, 0)], x_TI[row : row + 1], one, StepRows(torch.from_numpy(adapters[row : row + 1])))
            alone_TO[row] = one
        for _ in range(5):
            some = numbers.permutation(40)[: int(numbers.integers(1, 41))]
            found_TO = y_TO[some].clone()
            _by_kernel([(table, 0)], x_TI[some], found_TO, StepRows(torch.from_numpy(adapters[some])))
            assert torch.equal(found_TO, alone_TO[some])


def test_int8_tables_are_near_what_they_were_made_of() -> None:
    rng = torch.Generator().manual_seed(4)
    pair = LoraPair(torch.randn(8, 64, generator=rng), torch.randn(8, 48, generator=rng))
    table = put(None, 1, pair, TableKind(2, torch.int8, CPU))
    found_IO = (table.downs_MRI[1].float() * table.scales_MR[1][:, None]).T @ table.ups_MRO[1].float()
    wanted_IO = pair.down_RI.T @ pair.up_RO
    assert (found_IO - wanted_IO).norm() < 0.02 * wanted_IO.norm()


def test_tiles_of_one_long_prompt_among_single_rows_stay_few() -> None:
    adapters = np.array([0] * 300 + list(range(32)))
    tiles = tile_rows(adapters, CPU)
    assert tiles.num_tiles * tiles.height < 2 * len(adapters)
    assert tiles.num_tiles < 100


def test_one_adapter_for_all_rows_needs_no_copies() -> None:
    tiles = tile_rows(np.zeros(20, np.int64), CPU)
    assert (tiles.num_tiles, tiles.height) == (1, 20)
    assert (tiles.adapters_K, tiles.rows_P, tiles.places_A, tiles.targets_A) == (None, None, None, None)
