"""Attention over the paged cache against dense attention, query by query, in float64.

Shape letters: T tokens, H heads, D head size, N blocks, S sequences, K keys.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from rayloom.engine.attention import paged_attention, paged_attention_torch, write_kv, write_kv_torch
from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import AttentionView, CacheShape, PagedCache
from rayloom.engine.kernels import available

PATHS = [
    pytest.param((write_kv, paged_attention), id="fast"),
    pytest.param((write_kv_torch, paged_attention_torch), id="torch"),
]


@dataclass(frozen=True)
class Case:
    """One random step: per sequence how many keys it has and how many queries it brings."""

    seed: int
    key_heads: int
    group: int
    dim: int
    dtype: torch.dtype = torch.float32
    causal: bool = True
    window: int | None = None
    distances: int = 0
    most_keys: int = 70
    num_sequences: int = 5


CASES = [
    Case(0, key_heads=2, group=1, dim=16),
    Case(1, key_heads=3, group=3, dim=64),
    Case(2, key_heads=1, group=8, dim=20),
    Case(3, key_heads=2, group=2, dim=80, dtype=torch.bfloat16),
    Case(4, key_heads=4, group=1, dim=64, distances=32),
    Case(5, key_heads=2, group=1, dim=33, distances=100, dtype=torch.bfloat16),
    Case(6, key_heads=2, group=2, dim=32, window=7),
    Case(7, key_heads=1, group=2, dim=16, window=256, most_keys=700, num_sequences=3),
    Case(8, key_heads=1, group=5, dim=48, most_keys=600, num_sequences=3),
    Case(9, key_heads=1, group=60, dim=8, num_sequences=2),
    Case(10, key_heads=2, group=1, dim=64, causal=False),
    Case(11, key_heads=2, group=4, dim=96, causal=False, dtype=torch.bfloat16, most_keys=300),
    Case(12, key_heads=1, group=1, dim=1, window=1),
]


@dataclass(frozen=True)
class Step:
    """Inputs of the step and the dense keys and values behind the cache."""

    cache: PagedCache
    queries_THD: torch.Tensor
    view: AttentionView
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias_HD: torch.Tensor | None


def make_step(case: Case, write=write_kv_torch) -> Step:
    generator, rng = torch.Generator().manual_seed(case.seed), random.Random(case.seed)
    lengths = [rng.randint(1, case.most_keys) for _ in range(case.num_sequences)]
    lengths[0] = case.most_keys
    counts = [rng.choice([1, rng.randint(1, length)]) for length in lengths]
    tables = [-(-length // BLOCK) for length in lengths]
    num_blocks = sum(tables) + 3
    cache = PagedCache(CacheShape(2, case.key_heads, case.dim, case.dtype), num_blocks)
    # What freed blocks hold must not matter.
    for tensor in (cache.keys[1], cache.values[1]):
        tensor.fill_(torch.inf)
    order = rng.sample(range(num_blocks), num_blocks)
    tables_SN = torch.zeros(case.num_sequences, max(tables) + 1, dtype=torch.int32)
    keys, values = [], []
    for s, (length, num) in enumerate(zip(lengths, tables, strict=True)):
        blocks, order = order[:num], order[num:]
        tables_SN[s, :num] = torch.tensor(blocks)
        slots_T = torch.tensor([blocks[i // BLOCK] * BLOCK + i % BLOCK for i in range(length)])
        fused = torch.randn(length, 2 * case.key_heads + 1, case.dim, generator=generator)
        keys.append(fused[:, : case.key_heads])
        values.append(fused[:, case.key_heads + 1 :])
        write(cache, 1, keys[-1], values[-1], slots_T)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    heads = case.key_heads * case.group
    wide = torch.randn(int(starts[-1]), heads + 2, case.dim, generator=generator)
    bias_HD = torch.randn(heads, case.distances, generator=generator) if case.distances else None
    view = AttentionView(tables_SN, torch.tensor(lengths).int(), starts, max(counts), max(lengths))
    return Step(cache, wide[:, 1 : 1 + heads], view, keys, values, bias_HD)


def dense_attention(step: Step, case: Case, scale: float) -> torch.Tensor:
    """Plainly written: every head over all keys of its sequence, then a mask."""
    out = []
    for s, (keys, values) in enumerate(zip(step.keys, step.values, strict=True)):
        queries = step.queries_THD[int(step.view.starts_S[s]) : int(step.view.starts_S[s + 1])].double()
        positions = torch.arange(len(keys) - len(queries), len(keys))
        distances = positions[:, None] - torch.arange(len(keys))
        seen = (distances >= 0) & (distances < (case.window or len(keys))) if case.causal else distances == distances
        for head in range(queries.shape[1]):
            k, v = (x[:, head // case.group].to(case.dtype).double() for x in (keys, values))
            scores = queries[:, head] @ k.T * scale
            if step.bias_HD is not None:
                scores = scores + step.bias_HD[head, distances.clamp(0, case.distances - 1)]
            out.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
        out[-queries.shape[1] :] = [torch.stack(out[-queries.shape[1] :], dim=1)]
    return torch.cat(out)


def options(case: Case, step: Step) -> dict[str, object]:
    return {"scale": 0.37, "window": case.window, "bias_HD": step.bias_HD, "causal": case.causal}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_equals_dense_attention(case, path):
    write, attend = path
    step = make_step(case, write)
    out = attend(step.queries_THD, step.cache, 1, step.view, **options(case, step))
    torch.testing.assert_close(out.double(), dense_attention(step, case, 0.37), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_written_cache_is_the_same_on_both_paths(case):
    fast, plain = make_step(case, write_kv).cache, make_step(case, write_kv_torch).cache
    assert torch.equal(fast.keys[1], plain.keys[1])
    assert torch.equal(fast.values[1], plain.values[1])
    assert not fast.keys[0].any()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_queries_have_the_same_bits_alone(case):
    """In C++ neither other sequences nor other queries of the same chunk change a bit of a query's result."""
    step = make_step(case)
    together = paged_attention(step.queries_THD, step.cache, 1, step.view, **options(case, step))
    for s in range(case.num_sequences):
        first, end = int(step.view.starts_S[s]), int(step.view.starts_S[s + 1])
        for t in {first, (first + end) // 2, end - 1}:
            length = int(step.view.lengths_S[s]) - (end - 1 - t if case.causal else 0)
            lengths, starts = torch.tensor([length]).int(), torch.tensor([0, 1]).int()
            view = AttentionView(step.view.tables_SN[s : s + 1], lengths, starts, 1, length)
            alone = paged_attention(step.queries_THD[t : t + 1], step.cache, 1, view, **options(case, step))
            if available():
                assert torch.equal(alone[0], together[t])
            else:  # torch's matrix products round differently in other shapes
                torch.testing.assert_close(alone[0], together[t])


@pytest.mark.parametrize("path", PATHS)
def test_no_keys_give_zero_and_no_queries_give_nothing(path):
    attend = path[1]
    cache = PagedCache(CacheShape(1, 1, 16), 2)
    view = AttentionView(torch.zeros(1, 1).int(), torch.zeros(1).int(), torch.tensor([0, 1]).int(), 1, 0)
    out = attend(torch.ones(1, 2, 16), cache, 0, view, scale=1.0, causal=False)
    assert torch.equal(out, torch.zeros(1, 2, 16))
    nothing = AttentionView(torch.zeros(0, 1).int(), torch.zeros(0).int(), torch.zeros(1).int(), 0, 0)
    assert attend(torch.ones(0, 2, 16), cache, 0, nothing, scale=1.0).shape == (0, 2, 16)


@pytest.mark.parametrize("path", PATHS)
def test_large_scores_do_not_overflow(path):
    case = Case(20, key_heads=1, group=2, dim=16, most_keys=300, num_sequences=3)
    step = make_step(case)
    out = path[1](step.queries_THD * 100, step.cache, 1, step.view, scale=1.0)
    wanted = dense_attention(Step(**{**step.__dict__, "queries_THD": step.queries_THD * 100}), case, 1.0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-3, atol=1e-3)
