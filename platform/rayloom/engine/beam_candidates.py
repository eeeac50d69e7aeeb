"""The best, or drawn, continuations of many beams.

Of equal scores the earlier beam's, and in a beam the lowest token's, is the better one.

Shape letters: R rows (beams of all pools, end to end), V vocabulary, K best of each row, G pools, L most beams of a
pool, N = beams of one pool * V.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from rayloom.engine.beam_pools import BeamPool, Candidate
from rayloom.engine.rankings import largest, largest_log_probs

_PIECE = 512
"""Weights that are summed at a time when drawing."""


def best_candidates(scores_RV: torch.Tensor, pools: Seq[BeamPool]) -> list[list[Candidate]]:
    """Each pool's likeliest continuations, best first.

    Args:
        scores_RV: Processed log-probabilities of next tokens, the pools' beams end to end. -inf is never chosen.
        pools: None that samples. With dynamic beam allocation each beam's best token and all wanted ones come along.
    """
    values_RK, ids_RK = largest(scores_RV, _num_best(scores_RV, pools))
    found = _ranked(values_RK, ids_RK, pools)
    first_row = 0
    for place, pool in enumerate(pools):
        if pool.allocates:
            own = slice(first_row, first_row + len(pool.beams))
            found[place] = _with_wanted(found[place], pool, scores_RV[own], ids_RK[own, 0].tolist())
        first_row += len(pool.beams)
    return found


def best_of_logits(logits_RV: torch.Tensor, pools: Seq[BeamPool]) -> list[list[Candidate]]:
    """`best_candidates` of log-probabilities that nothing has changed; no pool allocates dynamically."""
    return _ranked(*largest_log_probs(logits_RV, _num_best(logits_RV, pools)), pools)


def _num_best(scores_RV: torch.Tensor, pools: Seq[BeamPool]) -> int:
    """Best tokens of each row to look at: any pool's candidates may all continue one beam."""
    return min(max(pool.num_candidates for pool in pools), scores_RV.shape[1])


def _ranked(values_RK: torch.Tensor, ids_RK: torch.Tensor, pools: Seq[BeamPool]) -> list[list[Candidate]]:
    """Each pool's best candidates out of its rows' best tokens."""
    sums_RK = values_RK + _running_scores(pools, values_RK)
    sums_GLK, ids_GLK = (_padded(tensor_RK, pools) for tensor_RK in (sums_RK, ids_RK))
    most, num_best = max(pool.num_candidates for pool in pools), ids_RK.shape[1]
    sums_GN, places_GN = sums_GLK.flatten(1).sort(dim=1, descending=True, stable=True)
    sums_GN, places_GN = sums_GN[:, :most], places_GN[:, :most]
    tokens_GN = ids_GLK.flatten(1).gather(1, places_GN)
    beams_GN = places_GN.div(num_best, rounding_mode="floor")
    found = []
    for pool, sums, beams, tokens in zip(pools, sums_GN.tolist(), beams_GN.tolist(), tokens_GN.tolist(), strict=True):
        size = pool.num_candidates
        best = list(map(Candidate, sums[:size], beams[:size], tokens[:size]))
        while best and best[-1].score == -torch.inf:
            best.pop()
        found.append(best)
    return found


def drawn_candidates(scores_LV: torch.Tensor, pool: BeamPool, seed: int) -> list[Candidate]:
    """Continuations of one pool, drawn without replacement by the probability of the whole hypothesis.

    Args:
        scores_LV: Processed log-probabilities of next tokens.
        pool: Whose beams they continue.
        seed: With the number of steps it decides the draw; nothing else does.
    """
    sums_LV = scores_LV + _running_scores([pool], scores_LV)
    sums_N = sums_LV.flatten()
    weights_N = (sums_N - sums_N.max()).exp().nan_to_num(0.0)  # nan where every score is -inf
    uniforms = np.random.Generator(np.random.Philox(key=seed % 2**64, counter=[0, pool.num_steps, 0, 0]))
    places = draw(weights_N.cpu().numpy(), uniforms.random(pool.num_candidates))
    scores = sums_N[torch.tensor(places, dtype=torch.long, device=sums_N.device)].tolist()
    vocab_size = scores_LV.shape[1]
    return [Candidate(score, *divmod(place, vocab_size)) for score, place in zip(scores, places, strict=True)]


def draw(weights_N: npt.NDArray[np.float32], uniforms: Seq[float] | npt.NDArray[np.float64]) -> list[int]:
    """Draw places one after another without replacement, each by its weight among those that are left.

    Drawn weights are taken out and their piece is summed anew: subtracting them would leave nothing but rounding errors
    where one weight holds nearly everything.

    Args:
        weights_N: Not negative.
        uniforms: Numbers in [0, 1), one for each draw.

    Returns:
        Fewer than `uniforms` where fewer weights are positive.
    """
    size = -(-len(weights_N) // _PIECE) * _PIECE
    flat = np.zeros(size, dtype=np.float64)
    flat[: len(weights_N)] = weights_N
    pieces = flat.reshape(-1, _PIECE)
    sums = pieces.sum(1)
    places: list[int] = []
    for uniform in uniforms:
        if not (total := sums.sum()):
            break
        piece, rest = _find(sums, uniform * total)
        inner, _ = _find(pieces[piece], rest)
        places.append(piece * _PIECE + inner)
        pieces[piece, inner] = 0.0
        sums[piece] = pieces[piece].sum()
    return places


def _find(weights: npt.NDArray[np.float64], target: float) -> tuple[int, float]:
    """The place where the running sum passes the target, and how far into its weight the target lies."""
    sums = weights.cumsum()
    place = int(sums.searchsorted(max(target, 0.0), side="right"))
    if place == len(sums):  # rounding
        place = int(weights.nonzero()[0][-1])
    return place, target - float(sums[place] - weights[place])


def _running_scores(pools: Seq[BeamPool], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[beam.score] for pool in pools for beam in pool.beams], dtype=like.dtype, device=like.device)


def _padded(tensor_RK: torch.Tensor, pools: Seq[BeamPool]) -> torch.Tensor:
    """``(G, L, K)``; where a pool has fewer beams than others, the lowest values."""
    counts = [len(pool.beams) for pool in pools]
    most = max(counts)
    if all(count == most for count in counts):
        return tensor_RK.reshape(len(pools), most, -1)
    fill = -torch.inf if tensor_RK.is_floating_point() else 0
    padded = tensor_RK.new_full((len(pools) * most, tensor_RK.shape[1]), fill)
    places = [group * most + place for group, count in enumerate(counts) for place in range(count)]
    padded[torch.tensor(places, device=padded.device)] = tensor_RK
    return padded.reshape(len(pools), most, -1)


def _with_wanted(best: list[Candidate], pool: BeamPool, scores_LV: torch.Tensor, firsts: Seq[int]) -> list[Candidate]:
    """Beside the best: each beam's own best token, and those that bring required words nearer; all in order again."""
    pairs = {
        (number, token)
        for number, (beam, first) in enumerate(zip(pool.beams, firsts, strict=True))
        for token in (first, *(token for words in beam.words for token in words.wanted()))
    }
    pairs -= {(item.beam, item.token) for item in best}
    if not pairs:
        return best
    beams, tokens = (list(side) for side in zip(*sorted(pairs), strict=True))
    scores = (scores_LV[beams, tokens] + _running_scores([pool], scores_LV)[beams, 0]).tolist()
    more = [Candidate(*item) for item in zip(scores, beams, tokens, strict=True) if item[0] > -torch.inf]
    return sorted([*best, *more], key=lambda item: item.score, reverse=True)
