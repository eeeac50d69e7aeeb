"""From processed scores to one token per row; and the log-probabilities that callers ask for.

A row is sampled by inversion: a uniform number picks the token at which the cumulated probabilities, in order of
token ids, pass it. The number is a hash of (seed, index of the sequence, tokens generated so far) and of nothing
else, so a request's answer does not depend on its company, its slot, or on having been preempted.

Shape letters: R rows, V vocabulary, N cells of a row, C tokens of a cell, K top tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rayloom.engine.rankings import argmax_rows, largest, take_rows
from rayloom.engine.request import TokenScore
from rayloom.engine.rows import Ids, RowStates, Uses, as_ids

_CELL = 128
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def token_scores(logits_RV: torch.Tensor, tokens_R: torch.Tensor, num_top: int) -> list[TokenScore]:
    """Log-probabilities of chosen tokens under the model itself.

    Args:
        logits_RV: The model's logits, before any processor.
        tokens_R: The token chosen in each row.
        num_top: How many of the likeliest tokens to name; 0 for none.

    Returns:
        One per row.
    """
    # Not logsumexp: torch's takes ten times as long where logits are -inf.
    logprobs_RV = logits_RV.log_softmax(dim=1)
    chosen_R = logprobs_RV.gather(1, tokens_R[:, None])[:, 0].tolist()
    if not num_top:
        return [TokenScore(score) for score in chosen_R]
    values_RK, ids_RK = largest(logprobs_RV, min(num_top, logits_RV.shape[1]))
    tops = zip(ids_RK.tolist(), values_RK.tolist(), strict=True)
    return [
        TokenScore(score, tuple(zip(ids, values, strict=True)))
        for score, (ids, values) in zip(chosen_R, tops, strict=True)
    ]


def uniform(seeds_R: npt.ArrayLike, indices_R: npt.ArrayLike, steps_R: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row, decided by three integers: a counter-based generator.

    Each integer goes through the finalizer of SplitMix64 (Steele, Lea and Flood 2014) on top of the ones before.

    Args:
        seeds_R: The requests' seeds.
        indices_R: Each sequence's index in its request.
        steps_R: Tokens that it has generated.
    """
    state_R = np.zeros(1, dtype=np.uint64)
    for part in (seeds_R, indices_R, steps_R):
        state_R = _mixed((state_R ^ np.atleast_1d(np.asarray(part)).astype(np.uint64)) + _GOLDEN)
    return (state_R >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _mixed(bits_R: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits_R = (bits_R ^ (bits_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_R = (bits_R ^ (bits_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_R ^ (bits_R >> np.uint64(31))


def choose(scores_RV: torch.Tensor, slots_R: Ids, states: RowStates) -> torch.Tensor:
    """The next token of every row: the best one, or a sampled one where the request says ``do_sample``.

    Of equal scores the lowest id is the best. A row without any finite score gives the best one too.

    Args:
        scores_RV: Processed scores, float32.
        slots_R: The rows' slots.
        states: What their requests say.

    Returns:
        int64 ``(R,)`` on the scores' device.
    """
    best_R = argmax_rows(scores_RV)
    records_R = states.records[as_ids(slots_R)]
    rows = np.flatnonzero(records_R["flags"] & Uses.SAMPLE)
    if not rows.size:
        return best_R
    chosen = records_R[rows]
    draws_R = uniform(chosen["seed"], chosen["index"], chosen["length"] - chosen["start_length"])
    index = torch.from_numpy(rows).to(scores_RV.device)
    best_R[index] = _sampled(take_rows(scores_RV, rows), torch.from_numpy(draws_R), best_R[index])
    return best_R


def _sampled(scores_RV: torch.Tensor, draws_R: torch.Tensor, best_R: torch.Tensor) -> torch.Tensor:
    """The token at which cumulated probabilities pass each row's draw, found by cells and then inside one cell.

    Sums inside a cell are float32, sums of cells float64: the distribution is off by 1e-7 at most. A token of
    probability zero is never returned while there is another.
    """
    num_rows, vocab_size = scores_RV.shape
    # Not exp: torch's takes ten times as long where scores are -inf, and a hundred where it underflows.
    weights_RV = scores_RV.softmax(dim=1)
    body = vocab_size // _CELL * _CELL
    cells_RN = weights_RV[:, :body].view(num_rows, body // _CELL, _CELL).sum(dim=2)
    sums_RN = functional.pad(cells_RN, (0, 1)).double()
    sums_RN[:, -1] = weights_RV[:, body:].sum(dim=1)
    sums_RN = sums_RN.cumsum(dim=1)
    aims_R1 = draws_R.to(scores_RV.device)[:, None] * sums_RN[:, -1:]
    cells_R1 = torch.searchsorted(sums_RN, aims_R1, right=True).clamp(max=sums_RN.shape[1] - 1)
    before_R1 = functional.pad(sums_RN, (1, 0)).gather(1, cells_R1)

    ids_RC = cells_R1 * _CELL + torch.arange(_CELL, device=scores_RV.device)
    is_inside_RC = ids_RC < vocab_size
    inside_RC = weights_RV.gather(1, ids_RC.clamp(max=vocab_size - 1)).double() * is_inside_RC
    places_R1 = torch.searchsorted(inside_RC.cumsum(dim=1), aims_R1 - before_R1, right=True)
    # The two kinds of sums may differ in the last bits: stay on tokens that have a probability.
    last_R1 = ((inside_RC > 0) * torch.arange(_CELL, device=scores_RV.device)).amax(dim=1, keepdim=True)
    places_R1 = places_R1.minimum(last_R1)
    is_possible_R1 = inside_RC.gather(1, places_R1) > 0
    return torch.where(is_possible_R1, cells_R1 * _CELL + places_R1, best_R[:, None])[:, 0]
