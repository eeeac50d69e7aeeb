"""Sampling warpers of ``transformers.generate``, over rows that each have their own settings.

All but one of them keep what reaches some threshold of its row, and the thresholds need few of a row's values:
top-k leaves that many candidates, on which all later warpers work; a nucleus is found among the largest few hundred
values, and among all only where these do not hold enough probability. So no row is sorted as a whole unless it must
be. Tokens of exactly equal scores are kept or cut together (transformers' top-p may part them).

Shape letters: R rows, V vocabulary, C candidates of a row (or all of it), K a row's largest candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.rankings import change_rows, cut_below, largest, largest_values, take_rows

Records = npt.NDArray[np.void]

_MAX_NARROW = 1024
"""Up to this top-k, candidates are copied out of their row."""
_WIDTHS = (256, 1024)
"""How many of the largest values are looked at for a nucleus before all are sorted."""
_LOWEST_LOG = -1e4


def warp(scores_RV: torch.Tensor, records_R: Records) -> None:
    """Temperature, top-k, top-p, min-p, typical, epsilon and eta, in this order and in place.

    Args:
        scores_RV: Processed scores of rows that sample.
        records_R: Their records of `RowStates`.
    """
    if (records_R["temperature"] != 1.0).any():
        scores_RV /= _column(records_R["temperature"], scores_RV)[:, None]
    wanted_R = np.maximum(records_R["top_k"], records_R["min_to_keep"])
    narrow = (records_R["top_k"] > 0) & (wanted_R < min(_MAX_NARROW, scores_RV.shape[1]))
    wide: npt.NDArray[np.bool_] = ~narrow & np.any([is_on(records_R) for is_on, _ in _CUTS], axis=0)
    if narrow.any():
        rows = np.flatnonzero(narrow)
        tied = _warp_narrow(scores_RV, rows, records_R[rows])
        wide[tied] = True
    if wide.any():
        rows = np.flatnonzero(wide)
        change_rows(scores_RV, rows, partial(_cut, records_R=records_R[rows]))


def _warp_narrow(scores_RV: torch.Tensor, rows: npt.NDArray[np.int64], records_R: Records) -> npt.NDArray[np.int64]:
    """Warp rows of small top-k through their candidates alone.

    Returns:
        Rows that it has left as they were, because more tokens than looked at share the last place.
    """
    wanted_R = np.maximum(records_R["top_k"], records_R["min_to_keep"])
    values_RC, ids_RC = largest(take_rows(scores_RV, rows), int(wanted_R.max()) + 1)
    last_R = values_RC.gather(1, _column(wanted_R - 1, values_RC)[:, None])[:, 0]
    tied_R: npt.NDArray[np.bool_] = ((values_RC[:, -1] == last_R) & (last_R > -torch.inf)).cpu().numpy()
    if tied_R.any():
        free = np.flatnonzero(~tied_R)
        if free.size:
            _warp_narrow(scores_RV, rows[free], records_R[free])
        return np.asarray(rows[tied_R])
    _cut(values_RC, records_R)
    # Places of -inf mean nothing: let them repeat what the best place gets.
    is_cut_RC = values_RC == -torch.inf
    ids_RC = torch.where(is_cut_RC, ids_RC[:, :1], ids_RC)
    values_RC = torch.where(is_cut_RC, values_RC[:, :1], values_RC)
    index_R = torch.from_numpy(rows).to(scores_RV.device)
    scores_RV.index_fill_(0, index_R, -torch.inf)
    scores_RV[index_R[:, None], ids_RC] = values_RC
    return rows[:0]


def _cut(scores_RC: torch.Tensor, records_R: Records) -> None:
    for is_on, cut in _CUTS:
        rows = np.flatnonzero(is_on(records_R))
        if rows.size:
            change_rows(scores_RC, rows, partial(cut, records_R=records_R[rows]))


def _cut_top_k(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Fan, Lewis and Dauphin 2018: the k likeliest."""
    wanted_R = np.maximum(records_R["top_k"], records_R["min_to_keep"])
    cut_below(scores_RC, _nth_largest(scores_RC, wanted_R))


def _cut_top_p(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Holtzman et al. 2020: the likeliest that together have probability p."""
    probs_RC = scores_RC.softmax(dim=1)
    threshold_R = _nucleus_threshold(scores_RC, probs_RC, records_R["top_p"], records_R["min_to_keep"], same_order=True)
    cut_below(scores_RC, threshold_R)


def _cut_min_p(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Nguyen et al. 2024: those with at least a share of the likeliest one's probability."""
    logs_R = np.log(records_R["min_p"]).astype(np.float32)
    threshold_R = scores_RC.amax(dim=1) + _column(logs_R, scores_RC)
    cut_below(scores_RC, _sparing(scores_RC, threshold_R, records_R))


def _cut_typical(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Meister et al. 2022: those whose information is nearest to the entropy, up to some probability together."""
    probs_RC, logprobs_RC = scores_RC.softmax(dim=1), scores_RC.log_softmax(dim=1)
    entropy_R = _entropy(probs_RC, logprobs_RC)
    nearness_RC = logprobs_RC.add_(entropy_R[:, None]).abs_().neg_()
    threshold_R = _nucleus_threshold(nearness_RC, probs_RC, records_R["typical_p"], records_R["min_to_keep"])
    cut_below(scores_RC, threshold_R, keys_RV=nearness_RC)


def _cut_epsilon(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Hewitt, Manning and Liang 2022: those of at least some probability."""
    cutoff_R = _column(np.log(records_R["epsilon_cutoff"]).astype(np.float32), scores_RC)
    norms_R = _norms(scores_RC, scores_RC.softmax(dim=1))
    cut_below(scores_RC, _sparing(scores_RC, norms_R + cutoff_R, records_R))


def _cut_eta(scores_RC: torch.Tensor, records_R: Records) -> None:
    """Hewitt, Manning and Liang 2022: epsilon, lowered where the entropy is high."""
    cutoff_R = _column(np.log(records_R["eta_cutoff"]).astype(np.float32), scores_RC)
    probs_RC = scores_RC.softmax(dim=1)
    entropy_R = _entropy(probs_RC, scores_RC.log_softmax(dim=1))
    threshold_R = _norms(scores_RC, probs_RC) + torch.minimum(cutoff_R, cutoff_R / 2 - entropy_R)
    cut_below(scores_RC, _sparing(scores_RC, threshold_R, records_R))


_CUTS: tuple[tuple[Callable[[Records], npt.NDArray[np.bool_]], Callable[..., None]], ...] = (
    (lambda records_R: records_R["top_k"] > 0, _cut_top_k),
    (lambda records_R: records_R["top_p"] < 1.0, _cut_top_p),
    (lambda records_R: records_R["min_p"] > 0.0, _cut_min_p),
    (lambda records_R: records_R["typical_p"] < 1.0, _cut_typical),
    (lambda records_R: records_R["epsilon_cutoff"] > 0.0, _cut_epsilon),
    (lambda records_R: records_R["eta_cutoff"] > 0.0, _cut_eta),
)


def _column(values_R: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values_R.copy()).to(like.device)


def _entropy(probs_RC: torch.Tensor, logprobs_RC: torch.Tensor) -> torch.Tensor:
    """Entropy of each row in nats; impossible tokens (-inf) have no share in it."""
    return -(logprobs_RC.clamp(min=_LOWEST_LOG) * probs_RC).sum(dim=1)


def _norms(scores_RC: torch.Tensor, probs_RC: torch.Tensor) -> torch.Tensor:
    """Logarithms of what the probabilities' sums were divided by."""
    return scores_RC.amax(dim=1) - probs_RC.amax(dim=1).log()


def _nth_largest(values_RC: torch.Tensor, counts_R: npt.NDArray[np.int64]) -> torch.Tensor:
    """Each row's counts-th largest value, or its smallest where it has fewer."""
    counts_R = np.minimum(counts_R, values_RC.shape[1])
    best_RK = largest_values(values_RC, int(counts_R.max()))
    return best_RK.gather(1, _column(counts_R - 1, values_RC)[:, None])[:, 0]


def _sparing(scores_RC: torch.Tensor, threshold_R: torch.Tensor, records_R: Records) -> torch.Tensor:
    """The threshold, lowered where it would keep fewer tokens than must be kept."""
    counts_R = records_R["min_to_keep"]
    spared_R = scores_RC.amax(dim=1) if counts_R.max() == 1 else _nth_largest(scores_RC, counts_R)
    return torch.minimum(threshold_R, spared_R)


def _nucleus_threshold(
    keys_RC: torch.Tensor,
    probs_RC: torch.Tensor,
    masses_R: npt.NDArray[np.float64],
    min_to_keep_R: npt.NDArray[np.int64],
    *,
    same_order: bool = False,
) -> torch.Tensor:
    """The smallest key of the fewest largest ones whose probabilities together reach a mass.

    Args:
        keys_RC: What orders the tokens, largest first.
        probs_RC: Their probabilities.
        masses_R: How much to reach.
        min_to_keep_R: Tokens to keep at least.
        same_order: Whether the keys grow with the probabilities: sorting values apart is quicker than by places.
    """
    num_all = keys_RC.shape[1]
    threshold_R = keys_RC.new_full((keys_RC.shape[0],), -torch.inf)
    open_rows = np.arange(keys_RC.shape[0])
    for width in (*(width for width in _WIDTHS if width < num_all), num_all):
        some_RC, some_probs_RC = take_rows(keys_RC, open_rows), take_rows(probs_RC, open_rows)
        if same_order and width == num_all:
            keys_RK, probs_RK = largest_values(some_RC, width), largest_values(some_probs_RC, width)
        else:
            keys_RK, ids_RK = largest(some_RC, width)
            probs_RK = some_probs_RC.gather(1, ids_RK).where(keys_RK > -torch.inf, 0.0)
        sums_RK = probs_RK.double().cumsum(dim=1)
        counts_R = (sums_RK < _column(masses_R[open_rows], keys_RC)[:, None]).sum(dim=1) + 1
        counts_R = counts_R.maximum(_column(min_to_keep_R[open_rows], keys_RC))
        last_R = keys_RK.gather(1, counts_R.clamp(max=width)[:, None] - 1)[:, 0]
        threshold_R[_column(open_rows, keys_RC)] = last_R  # of rows that stay open to be replaced
        is_open_R = (counts_R > width) & (probs_RK[:, -1] > 0)
        open_rows = open_rows[is_open_R.cpu().numpy()]
        if not open_rows.size:
            break
    return threshold_R
