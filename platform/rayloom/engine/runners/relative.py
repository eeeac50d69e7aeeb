"""T5's relative positions (Raffel et al., 2020, section 2.1): biases of attention scores by distance.

Shape letters: H heads, P relative positions or distances, L tokens of a prompt, N buckets.
"""

from __future__ import annotations

import math

import torch


def bucket_of(distances_P: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """The bucket of each distance >= 0: near ones have their own, farther ones share, on a logarithmic scale.

    In float32 and in the order of operations of transformers, so that borders fall on the same distances.
    """
    num_exact = num_buckets // 2
    ratio_P = torch.log(distances_P.float() / num_exact) / math.log(max_distance / num_exact)
    # -inf at distance 0, which does not use this branch.
    shared_P = num_exact + (ratio_P * (num_buckets - num_exact)).clamp(min=0).long()
    return torch.where(distances_P < num_exact, distances_P, shared_P.clamp(max=num_buckets - 1))


def causal_bias(weight_NH: torch.Tensor, max_distance: int) -> torch.Tensor:
    """A decoder's bias ``(H, max_distance + 1)`` by distance; larger distances have the last one."""
    distances_P = torch.arange(max_distance + 1, device=weight_NH.device)
    return weight_NH.float()[bucket_of(distances_P, weight_NH.shape[0], max_distance)].t().contiguous()


def two_way_bias(weight_NH: torch.Tensor, max_distance: int) -> torch.Tensor:
    """An encoder's bias ``(H, 2 * max_distance + 1)`` by key position - query position + max_distance.

    Half of the buckets are for keys behind the query, half for those before it. Positions farther away than
    ``max_distance`` have the outermost one.
    """
    half = weight_NH.shape[0] // 2
    positions_P = torch.arange(-max_distance, max_distance + 1, device=weight_NH.device)
    buckets_P = bucket_of(positions_P.abs(), half, max_distance) + half * (positions_P > 0)
    return weight_NH.float()[buckets_P].t().contiguous()


def spread(bias_HP: torch.Tensor, length: int) -> torch.Tensor:
    """The bias of `two_way_bias` for every query and key of a prompt."""
    most = bias_HP.shape[1] // 2
    places_L = torch.arange(length, device=bias_HP.device)
    return bias_HP[:, (places_L - places_L[:, None]).clamp(-most, most) + most]
