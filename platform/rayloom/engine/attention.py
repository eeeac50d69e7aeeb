"""Attention over the paged cache: in C++ on a CPU that can build it, in plain torch elsewhere, with equal results.

Shape letters: T tokens of the step, H heads (of queries or of keys, as said), D head size, N blocks, B tokens of a
block, S sequences, Q queries of a sequence, K keys of a sequence, G query heads that share a key head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import AttentionView, PagedCache
from rayloom.engine.kernels.library import native


@dataclass(frozen=True)
class _Rule:
    """What a query may see and how scores are made: the options of `paged_attention`."""

    scale: float
    window: int | None
    bias_HD: torch.Tensor | None
    causal: bool


def write_kv(
    cache: PagedCache, layer: int, keys_THD: torch.Tensor, values_THD: torch.Tensor, slots_T: torch.Tensor
) -> None:
    """Store a step's keys and values in their places of the cache.

    Args:
        cache: The pool.
        layer: Layer of the cache.
        keys_THD: float32 ``(T, key heads, D)``; rows may be a view into a wider tensor.
        values_THD: Likewise.
        slots_T: int64 places, block * BLOCK + place in the block; no place twice.
    """
    library = native()
    keys, values = cache.keys[layer], cache.values[layer]
    if library is None or not keys.is_cpu:
        write_kv_torch(cache, layer, keys_THD, values_THD, slots_T)
        return
    num_tokens, num_heads, dim = keys_THD.shape
    assert keys_THD.stride(1) == dim == values_THD.stride(1), "heads must lie end to end"
    assert keys_THD.dtype is values_THD.dtype is torch.float32
    assert slots_T.dtype is torch.int64
    library.write_kv(
        keys_THD.data_ptr(),
        keys_THD.stride(0),
        values_THD.data_ptr(),
        values_THD.stride(0),
        slots_T.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        num_tokens,
        num_heads,
        dim,
        keys.dtype is torch.bfloat16,
    )


def write_kv_torch(
    cache: PagedCache, layer: int, keys_THD: torch.Tensor, values_THD: torch.Tensor, slots_T: torch.Tensor
) -> None:
    """`write_kv` in plain torch, on any device."""
    keys, values = cache.keys[layer], cache.values[layer]
    blocks_T, places_T = slots_T // BLOCK, slots_T % BLOCK
    keys[blocks_T, :, :, places_T] = keys_THD.to(keys.dtype)
    values[blocks_T, :, places_T, :] = values_THD.to(values.dtype)


def paged_attention(  # noqa: PLR0913 (its options are keywords)
    queries_THD: torch.Tensor,
    cache: PagedCache,
    layer: int,
    view: AttentionView,
    *,
    scale: float,
    window: int | None = None,
    bias_HD: torch.Tensor | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """softmax(scale * q k + bias) v of every query over its sequence's cached keys.

    The C++ path gives each query the same bits whatever else is in the step.

    Args:
        queries_THD: float32 ``(T, query heads, D)``; rows may be a view into a wider tensor. Query heads are a
            multiple of key heads; query head h reads key head h // (query heads / key heads).
        cache: The pool.
        layer: Layer of the cache.
        view: Which queries see which blocks.
        scale: Factor of the scores.
        window: Causal only: keys at a distance of this many tokens or more are not seen.
        bias_HD: Causal only: float32 ``(query heads, distances)`` added to the score of a key at that distance
            (query position - key position); larger distances use the last column.
        causal: Whether a query sees only keys up to its own position.

    Returns:
        float32 ``(T, query heads, D)``. A query that sees no key gives 0.
    """
    assert causal or (window is None and bias_HD is None), "distances need a causal mask"
    keys = cache.keys[layer]
    library = native()
    if library is None or not keys.is_cpu:
        rule = _Rule(scale, window, bias_HD, causal)
        return _attend_torch(queries_THD, keys, cache.values[layer], view, rule)
    num_tokens, num_heads, dim = queries_THD.shape
    assert queries_THD.stride(1) == dim, "heads must lie end to end"
    assert queries_THD.dtype is torch.float32
    assert view.tables_SN.dtype is view.lengths_S.dtype is view.starts_S.dtype is torch.int32
    assert bias_HD is None or bias_HD.is_contiguous()
    out_THD = torch.empty(num_tokens, num_heads, dim)
    library.paged_attention(
        out_THD.data_ptr(),
        queries_THD.data_ptr(),
        queries_THD.stride(0),
        keys.data_ptr(),
        cache.values[layer].data_ptr(),
        keys.dtype is torch.bfloat16,
        view.tables_SN.data_ptr(),
        view.tables_SN.stride(0),
        view.lengths_S.data_ptr(),
        view.starts_S.data_ptr(),
        view.lengths_S.numel(),
        num_heads,
        keys.shape[1],
        dim,
        scale,
        window or 0,
        None if bias_HD is None else bias_HD.data_ptr(),
        0 if bias_HD is None else bias_HD.shape[1],
        causal,
        view.max_queries,
    )
    return out_THD


def paged_attention_torch(  # noqa: PLR0913 (its options are keywords)
    queries_THD: torch.Tensor,
    cache: PagedCache,
    layer: int,
    view: AttentionView,
    *,
    scale: float,
    window: int | None = None,
    bias_HD: torch.Tensor | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """`paged_attention` in plain torch, on any device."""
    rule = _Rule(scale, window, bias_HD, causal)
    return _attend_torch(queries_THD, cache.keys[layer], cache.values[layer], view, rule)


def _attend_torch(
    queries_THD: torch.Tensor,
    keys_NHDB: torch.Tensor,
    values_NHBD: torch.Tensor,
    view: AttentionView,
    rule: _Rule,
) -> torch.Tensor:
    """Sequences with one query are computed together, others one by one, so that nothing is padded to the longest."""
    out_THD = torch.zeros_like(queries_THD, memory_format=torch.contiguous_format)
    if view.max_queries <= 1 and view.lengths_S.numel() == queries_THD.shape[0]:
        return _attend(queries_THD.unsqueeze(1), keys_NHDB, values_NHBD, (view.tables_SN, view.lengths_S), rule)[:, 0]
    counts = view.starts_S.diff()
    rows_S = view.starts_S[:-1].long()
    singles = (counts == 1).nonzero()[:, 0]
    if len(singles):
        rows, tables = rows_S[singles], (view.tables_SN[singles], view.lengths_S[singles])
        out_THD[rows] = _attend(queries_THD[rows].unsqueeze(1), keys_NHDB, values_NHBD, tables, rule)[:, 0]
    for s in (counts > 1).nonzero()[:, 0].tolist():
        span = slice(int(view.starts_S[s]), int(view.starts_S[s + 1]))
        tables = (view.tables_SN[s : s + 1], view.lengths_S[s : s + 1])
        out_THD[span] = _attend(queries_THD[span].unsqueeze(0), keys_NHDB, values_NHBD, tables, rule)[0]
    return out_THD


def _attend(
    queries_SQHD: torch.Tensor,
    keys_NHDB: torch.Tensor,
    values_NHBD: torch.Tensor,
    keys_of: tuple[torch.Tensor, torch.Tensor],
    rule: _Rule,
) -> torch.Tensor:
    """Attention of equally many queries of each sequence; ``keys_of`` = (block tables, numbers of keys)."""
    tables_SN, lengths_S = keys_of
    num_seqs, num_queries, num_heads, dim = queries_SQHD.shape
    num_blocks = -(-int(lengths_S.max()) // BLOCK) if num_seqs else 0
    blocks_SN = tables_SN[:, :num_blocks].long()
    key_heads, num_keys = keys_NHDB.shape[1], num_blocks * BLOCK
    keys_SHDK = keys_NHDB[blocks_SN].permute(0, 2, 3, 1, 4).reshape(num_seqs, key_heads, dim, num_keys).float()
    values_SHKD = values_NHBD[blocks_SN].permute(0, 2, 1, 3, 4).reshape(num_seqs, key_heads, num_keys, dim).float()
    allowed_SQK, distance_SQK = _visible(lengths_S, num_queries, num_keys, rule)
    group, span = num_heads // key_heads, (num_queries, num_keys)
    grouped = queries_SQHD.reshape(num_seqs, num_queries, key_heads, group, dim).permute(0, 2, 3, 1, 4)
    scores_SHGQK = (grouped.flatten(2, 3) @ keys_SHDK * rule.scale).view(num_seqs, key_heads, group, *span)
    if rule.bias_HD is not None:
        bias = rule.bias_HD[:, distance_SQK.clamp(0, rule.bias_HD.shape[1] - 1)]
        scores_SHGQK = scores_SHGQK + bias.view(key_heads, group, num_seqs, *span).permute(2, 0, 1, 3, 4)
    hidden = ~allowed_SQK[:, None, None]
    # The second fill is for queries that see nothing, whose softmax is not a number.
    weights = scores_SHGQK.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
    # Freed blocks may hold anything, and 0 times infinity is not 0.
    beyond_SK = torch.arange(num_keys, device=lengths_S.device) >= lengths_S[:, None]
    values_SHKD = values_SHKD.masked_fill(beyond_SK[:, None, :, None], 0.0)
    mixed_SHGQD = (weights.flatten(2, 3) @ values_SHKD).view(num_seqs, key_heads, group, num_queries, dim)
    return mixed_SHGQD.permute(0, 3, 1, 2, 4).reshape(num_seqs, num_queries, num_heads, dim)


def _visible(
    lengths_S: torch.Tensor, num_queries: int, num_keys: int, rule: _Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys each query sees, and how far back they are: both ``(S, Q, K)``."""
    device = lengths_S.device
    places_K = torch.arange(num_keys, device=device)
    positions_SQ = lengths_S.long()[:, None] - num_queries + torch.arange(num_queries, device=device)
    distance_SQK = positions_SQ[:, :, None] - places_K
    allowed_SQK = (places_K < lengths_S[:, None])[:, None].expand_as(distance_SQK)
    if rule.causal:
        allowed_SQK = allowed_SQK & (distance_SQK >= 0)
    if rule.window is not None:
        allowed_SQK = allowed_SQK & (distance_SQK < rule.window)
    return allowed_SQK, distance_SQK
