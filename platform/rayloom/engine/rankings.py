"""Best places, largest values and cuts of rows of scores, each by the quickest exact way of its device.

On CPUs torch's argmax, topk, sort and masked fills take several times as long over a vocabulary of 50,000 as
numpy's vectorised loops over the same memory, which are used there. Results do not depend on the way.

Shape letters: R rows, V vocabulary, K wanted places, C candidates of a row, N cells that a row is cut into.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.kernels.selection import largest_native, log_softmax

_MAX_CELL = 64
_MIN_CELL = 4
_FEW = 512
_LOWEST = torch.finfo(torch.float32).min


def argmax_rows(scores_RV: torch.Tensor) -> torch.Tensor:
    """Place of each row's largest value, the first of equals. int64 ``(R,)``."""
    if scores_RV.device.type == "cpu":
        return torch.from_numpy(scores_RV.numpy().argmax(axis=1))
    return scores_RV.argmax(dim=1)


def cut_below(scores_RV: torch.Tensor, threshold_R: torch.Tensor, keys_RV: torch.Tensor | None = None) -> None:
    """Set scores to -inf, in place, where they (or given keys) are smaller than their row's threshold."""
    keys_RV = scores_RV if keys_RV is None else keys_RV
    if scores_RV.device.type == "cpu":
        np.copyto(scores_RV.numpy(), -np.inf, where=keys_RV.numpy() < threshold_R.numpy()[:, None])
    else:
        scores_RV.masked_fill_(keys_RV < threshold_R[:, None], -torch.inf)


def cut_where(scores_RV: torch.Tensor, banned_RV: npt.NDArray[np.bool_]) -> None:
    """Set banned places to -inf, in place."""
    if scores_RV.device.type == "cpu":
        np.copyto(scores_RV.numpy(), -np.inf, where=banned_RV)
    else:
        scores_RV.masked_fill_(torch.from_numpy(banned_RV).to(scores_RV.device), -torch.inf)


def largest(scores_RV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` largest values of each row, largest first, and their places.

    Of equal values the lowest place comes first. The places of values -inf mean nothing.

    Returns:
        ``(R, count)`` values and int64 places.
    """
    return largest_native(scores_RV, count) or _largest(scores_RV, count)


def largest_log_probs(logits_RV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`largest` of `kernels.selection.log_softmax`, with the same bits, but without making it where a kernel can."""
    return largest_native(logits_RV, count, as_log_probs=True) or _largest(log_softmax(logits_RV), count)


def _largest(scores_RV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    on_cpu, num_places = scores_RV.device.type == "cpu", scores_RV.shape[1]
    cell = min(num_places // (4 * count), _MAX_CELL)
    if on_cpu and cell >= _MIN_CELL:
        values_RC, places_RC = _candidates(scores_RV, count, cell)
        best = values_RC.sort(dim=1, descending=True, stable=True)  # candidates come in the order of their places
        return best.values[:, :count], places_RC.gather(1, best.indices[:, :count])
    if on_cpu and num_places > _FEW:
        order_RK = np.argsort(-scores_RV.numpy(), axis=1, kind="stable")[:, :count].copy()
        places_RK = torch.from_numpy(order_RK)
        return scores_RV.gather(1, places_RK), places_RK
    best = scores_RV.sort(dim=1, descending=True, stable=True)
    return best.values[:, :count], best.indices[:, :count]


def largest_values(scores_RV: torch.Tensor, count: int) -> torch.Tensor:
    """The values of `largest` alone, which are quicker to have where they are many."""
    num_places = scores_RV.shape[1]
    if scores_RV.device.type == "cpu" and num_places > max(_FEW, 4 * _MIN_CELL * count):
        return largest(scores_RV, count)[0]
    if scores_RV.device.type == "cpu":
        return torch.from_numpy(np.sort(scores_RV.numpy(), axis=1)[:, : -count - 1 : -1].copy())
    return scores_RV.topk(count, dim=1).values


def _candidates(scores_RV: torch.Tensor, count: int, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A superset of each row's largest values.

    The row is cut into cells; the count-th largest of the cells' maxima is reached by at least ``count`` values,
    so no value below it is among the largest. Reading all values once thus leaves few to be ordered.
    """
    num_rows, num_places = scores_RV.shape
    num_cells = num_places // cell
    body = num_cells * cell
    # A cell is every num_cells-th place: maxima over the middle axis run through memory in order.
    maxima_RN = scores_RV[:, :body].reshape(num_rows, cell, num_cells).amax(dim=1)
    bound_R = maxima_RN.topk(count, dim=1).values[:, -1].clamp(min=_LOWEST)
    values = scores_RV.numpy()
    rows, places = np.divmod(np.flatnonzero(values >= bound_R.numpy()[:, None]), num_places)
    counts_R = np.bincount(rows, minlength=num_rows)
    columns = np.arange(rows.size) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    width = max(count, int(counts_R.max(initial=0)))
    values_RC = np.full((num_rows, width), -np.inf, dtype=values.dtype)
    places_RC = np.zeros((num_rows, width), dtype=np.int64)
    values_RC[rows, columns] = values[rows, places]
    places_RC[rows, columns] = places
    return torch.from_numpy(values_RC), torch.from_numpy(places_RC)


def take_rows(scores_RV: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Some (ascending) rows: the memory itself where they are neighbours, else a copy."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == rows.size:
        return scores_RV[first : last + 1]
    return scores_RV[torch.from_numpy(rows).to(scores_RV.device)]


def change_rows(scores_RV: torch.Tensor, rows: npt.NDArray[np.int64], change: Callable[[torch.Tensor], None]) -> None:
    """Let ``change`` work in place on some (ascending) rows, without copying them where they are neighbours."""
    block = take_rows(scores_RV, rows)
    change(block)
    if int(rows[-1]) - int(rows[0]) + 1 != rows.size:
        scores_RV[torch.from_numpy(rows).to(scores_RV.device)] = block
