"""Beam sampling: exact draws, the distribution of transformers.generate, seeds."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper

from rayloom.engine.beam_candidates import draw
from rayloom.engine.request import EngineRequest, Params
from tests.unit.engine.beam_toys import Drive, Table, TableModel

PAD = 0


def beams_of(**settings: Any) -> EngineRequest:
    return EngineRequest(start_ids=(1, 2), params=Params(**{"max_new_tokens": 9, "num_beams": 2, **settings}))


def likelihood(statistic: float, degrees: int) -> float:
    """Of a chi-square at least as large, by the approximation of Wilson and Hilferty (1931)."""
    spread = 2 / (9 * degrees)
    return float(torch.special.ndtr(torch.tensor(-((statistic / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)))


def test_draws_without_replacement_have_the_exact_distribution() -> None:
    weights = torch.tensor([3.0, 0.0, 1.0, 0.5, 2.0] + [0.0] * 600 + [1.5])
    total, size = float(weights.sum()), 8_000
    rng = random.Random(0)
    seen = Counter(tuple(draw(weights.numpy(), [rng.random(), rng.random()])) for _ in range(size))
    places = weights.nonzero()[:, 0].tolist()
    pairs = [(first, second) for first in places for second in places if first != second]
    expected = [float(weights[a] / total * weights[b] / (total - weights[a])) * size for a, b in pairs]
    assert set(seen) <= set(pairs)
    statistic = sum((seen[pair] - count) ** 2 / count for pair, count in zip(pairs, expected, strict=True))
    assert likelihood(statistic, len(pairs) - 1) > 1e-3


def test_draws_go_on_where_one_weight_is_nearly_everything() -> None:
    weights = torch.tensor([1e-25, 1.0, 2e-25, 0.0])
    rng = random.Random(1)
    seen = Counter(tuple(draw(weights.numpy(), [rng.random() for _ in range(4)])) for _ in range(3000))
    assert set(seen) == {(1, 0, 2), (1, 2, 0)}
    assert seen[1, 2, 0] / 3000 == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("top_k", [None, 3])
def test_beam_sampling_has_the_distribution_of_transformers(top_k: int | None) -> None:
    size, table = 1500, Table(6, seed=5, scale=0.4)
    warpers = [TemperatureLogitsWarper(0.8), *([TopKLogitsWarper(top_k, min_tokens_to_keep=2)] if top_k else [])]

    def warp(scores_RV: torch.Tensor) -> torch.Tensor:
        return LogitsProcessorList(warpers)(torch.zeros(len(scores_RV), 1, dtype=torch.long), scores_RV)

    shape = {"max_new_tokens": 3, "num_beams": 2, "do_sample": True, "length_penalty": 0.5, "early_stopping": True}
    requests = [
        EngineRequest(start_ids=(2, 3), params=Params(**shape, eos_token_ids=(1,), seed=number))
        for number in range(size)
    ]
    found = Counter(item[0].tokens for item in Drive(table, warp=warp).run(requests))
    torch.manual_seed(0)
    expected = Counter(generated(table, size, shape, top_k))
    keys = [key for key in set(found) | set(expected) if found[key] + expected[key] >= 20]
    assert len(keys) > 5
    statistic = sum((found[key] - expected[key]) ** 2 / (found[key] + expected[key]) for key in keys)
    assert likelihood(statistic, len(keys) - 1) > 1e-3
    assert sum(found[key] + expected[key] for key in keys) > 1.9 * size


def generated(table: Table, size: int, shape: dict[str, Any], top_k: int | None) -> list[tuple[int, ...]]:
    rows = (
        TableModel(table)
        .generate(
            torch.tensor([[2, 3]] * size),
            attention_mask=torch.ones(size, 2, dtype=torch.long),
            temperature=0.8,
            top_k=top_k,
            eos_token_id=1,
            pad_token_id=PAD,
            use_cache=False,
            **shape,
        )[:, 2:]
        .tolist()
    )
    return [tuple(row[: row.index(1)] if 1 in row else row) for row in rows]


def test_a_seed_gives_the_same_in_any_company() -> None:
    table = Table(30, seed=2)

    def request(seed: int) -> EngineRequest:
        return beams_of(do_sample=True, seed=seed, num_beams=3, num_return_sequences=3, eos_token_ids=(1,))

    mixed = [request(7), beams_of(), request(-1), beams_of(num_beams=5), request(2**70)]
    together = Drive(table).run(mixed, [0, 2, 1, 0, 3])
    assert together == [Drive(table).run([one])[0] for one in mixed]
    assert len({str(Drive(table).run([request(seed)])) for seed in range(20)}) > 10
