"""The quick ways over rows of scores against torch's plain ones."""

from __future__ import annotations

import pytest
import torch

from rayloom.engine.rankings import argmax_rows, change_rows, cut_below, largest, largest_values


@pytest.mark.parametrize("vocab_size", [1, 7, 300, 513, 5000])
@pytest.mark.parametrize("count", [1, 2, 50, 600, 5000])
@pytest.mark.parametrize("share_impossible", [0.0, 0.5, 0.99, 1.0])
def test_largest_equals_topk(vocab_size: int, count: int, share_impossible: float) -> None:
    count = min(count, vocab_size)
    generator = torch.Generator().manual_seed(vocab_size + count)
    scores_RV = torch.randn(5, vocab_size, generator=generator)
    scores_RV[torch.rand(5, vocab_size, generator=generator) < share_impossible] = -torch.inf
    scores_RV[0] = scores_RV[0].round()  # many equal ones
    values_RK, places_RK = largest(scores_RV, count)
    assert torch.equal(values_RK, scores_RV.topk(count, dim=1).values)
    assert torch.equal(values_RK, largest_values(scores_RV, count))
    for values_K, places_K, scores_V in zip(values_RK, places_RK, scores_RV, strict=True):
        finite = values_K.isfinite()
        assert torch.equal(scores_V[places_K[finite]], values_K[finite])
        assert places_K[finite].unique().numel() == finite.sum()


def test_argmax_takes_the_first_of_equals() -> None:
    scores_RV = torch.randint(0, 4, (20, 1000), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(argmax_rows(scores_RV), scores_RV.argmax(dim=1))


@pytest.mark.parametrize("rows", [[0, 1, 2], [2], [0, 3], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_changes_reach_their_rows_and_no_others(rows: list[int]) -> None:
    scores_RV = torch.randn(5, 40)
    expected_RV = scores_RV.clone()
    expected_RV[rows] = expected_RV[rows].masked_fill(expected_RV[rows] < 0.5, -torch.inf)
    thresholds_R = torch.full((len(rows),), 0.5)
    change_rows(scores_RV, torch.tensor(rows).numpy(), lambda block_RV: cut_below(block_RV, thresholds_R))
    assert torch.equal(scores_RV, expected_RV)
