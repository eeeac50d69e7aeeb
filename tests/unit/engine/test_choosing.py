"""What is chosen: the best token, or one with exactly its probability; and log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rayloom.engine.choosing import choose, token_scores, uniform
from rayloom.engine.processors import process
from rayloom.engine.request import EngineRequest, Params
from rayloom.engine.rows import RowStates
from tests.unit.engine.rows_oracle import expected

_DRAWS = 3000


def _sampling(seed: int = 0, **values: Any) -> EngineRequest:
    return EngineRequest(start_ids=(1,), params=Params(max_new_tokens=50, do_sample=True, seed=seed, **values))


def _surprise(counts_V: np.ndarray[Any, Any], probabilities_V: np.ndarray[Any, Any]) -> float:
    """Chi-square of counts as a standard normal number (Wilson and Hilferty 1931); cells of few draws are merged."""
    expected_V = probabilities_V * counts_V.sum()
    small = expected_V < 8
    observed = np.append(counts_V[~small], counts_V[small].sum())
    wanted = np.append(expected_V[~small], expected_V[small].sum())
    observed, wanted = observed[wanted > 1e-9], wanted[wanted > 1e-9]
    freedom = len(wanted) - 1
    if not freedom:
        return 0.0
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / np.sqrt(spread))


def test_greedy_takes_the_first_of_the_best() -> None:
    states = RowStates(8, 200, 8)
    for slot in range(8):
        states.open(slot, EngineRequest(start_ids=(1,), params=Params(max_new_tokens=4)), [1], 0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        scores_RV = torch.randint(0, 9, (8, 200), generator=generator).float()
        assert torch.equal(choose(scores_RV, list(range(8)), states), scores_RV.argmax(dim=1))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.03},
        {"eta_cutoff": 0.2},
        {"temperature": 1.4, "top_k": 12, "top_p": 0.9},
        {"top_k": 20, "min_p": 0.05, "typical_p": 0.9},
        {"repetition_penalty": 1.8, "suppress_tokens": (4, 5), "top_p": 0.95},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [30, 300])
def test_sampled_tokens_have_the_probabilities_of_transformers(values: Mapping[str, Any], vocab_size: int) -> None:
    scores_V = 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    request = _sampling(seed=77, **values)
    probabilities_V = expected(request, [1], scores_V).double().softmax(dim=0).numpy()
    states = RowStates(_DRAWS, vocab_size, 8)
    for slot in range(_DRAWS):
        states.open(slot, request, [1], slot)
    slots = list(range(_DRAWS))
    tokens = choose(process(scores_V.repeat(_DRAWS, 1), slots, states), slots, states)
    counts_V = np.bincount(tokens.numpy(), minlength=vocab_size)
    assert not counts_V[probabilities_V == 0].any()
    assert abs(_surprise(counts_V, probabilities_V)) < 3.5


def test_steps_of_one_sequence_are_independent_draws() -> None:
    """Pairs of successive tokens have the product of their probabilities."""
    scores_V, num_rows = torch.tensor([0.5, 0.0, -0.5, 1.0]), 64
    states, slots = RowStates(num_rows, 4, 64), list(range(num_rows))
    for slot in slots:
        states.open(slot, _sampling(seed=slot), [1], 0)
    drawn = []
    for _ in range(50):
        drawn.append(choose(scores_V.repeat(num_rows, 1), slots, states))
        states.append(slots, drawn[-1])
    tokens = torch.stack(drawn).numpy()
    pairs = (tokens[:-1] * 4 + tokens[1:]).ravel()
    probabilities = scores_V.double().softmax(dim=0).numpy()
    assert abs(_surprise(np.bincount(pairs, minlength=16), np.outer(probabilities, probabilities).ravel())) < 3.5


def test_sampling_depends_on_seed_index_and_step_only() -> None:
    """Alone, or in any company and slot; among greedy rows too."""
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    for _ in range(30):
        request, index, step = _sampling(draw.randrange(2**40), top_p=0.9), draw.randrange(5), draw.randrange(20)
        tokens = [1, *(draw.randrange(300) for _ in range(step))]
        scores_V = torch.randn(300, generator=generator)
        alone = RowStates(1, 300, 64)
        alone.open(0, request, tokens, index)
        wanted = int(choose(process(scores_V[None], [0], alone), [0], alone))
        company = RowStates(9, 300, 64)
        slots = draw.sample(range(9), 7)
        place = draw.randrange(7)
        scores_RV = torch.randn(7, 300, generator=generator)
        scores_RV[place] = scores_V
        for row, slot in enumerate(slots):
            params = Params(max_new_tokens=30, do_sample=draw.random() < 0.5, seed=draw.randrange(99), top_k=9)
            other = EngineRequest(start_ids=(2, 3), params=params)
            company.open(slot, *((request, tokens, index) if row == place else (other, [2, 3], row)))
        assert int(choose(process(scores_RV, slots, company), slots, company)[place]) == wanted


def test_seeds_of_any_size() -> None:
    states = RowStates(3, 50, 8)
    for slot, seed in enumerate([-1, 2**64 - 1, 2**70 + 3]):
        states.open(slot, _sampling(seed), [1], 0)
    first, second, third = choose(torch.zeros(3, 50), [0, 1, 2], states).tolist()
    assert first == second
    assert 0 <= third < 50


def test_impossible_tokens_are_never_drawn() -> None:
    """One possible token, anywhere; or none, which gives the first."""
    states = RowStates(300, 300, 8)
    for slot in range(300):
        states.open(slot, _sampling(slot), [1], slot)
    scores_RV = torch.full((300, 300), -torch.inf)
    scores_RV.diagonal().fill_(-40.0)
    scores_RV[17] = -torch.inf
    tokens = choose(scores_RV, list(range(300)), states)
    wanted = torch.arange(300)
    wanted[17] = 0
    assert torch.equal(tokens, wanted)


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    for parts in ((np.arange(50_000), 0, 0), (7, np.arange(50_000), 0), (7, 0, np.arange(50_000))):
        numbers = np.broadcast_to(uniform(*parts), 50_000)
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        assert abs(_surprise(np.bincount((numbers * 64).astype(int), minlength=64), np.full(64, 1 / 64))) < 3.5
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    swapped = uniform([1, 2], [2, 1], [0, 0])
    assert swapped[0] != swapped[1]


@pytest.mark.parametrize("num_top", [0, 1, 5, 500])
@pytest.mark.parametrize("vocab_size", [3, 40, 5000])
def test_token_scores_equal_log_softmax(num_top: int, vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits_RV = 4 * torch.randn(5, vocab_size, generator=generator)
    tokens_R = torch.randint(0, vocab_size, (5,), generator=generator)
    scores = token_scores(logits_RV, tokens_R, num_top)
    exact_RV = logits_RV.double().log_softmax(dim=1)
    for score, token, exact_V in zip(scores, tokens_R.tolist(), exact_RV, strict=True):
        assert score.logprob == pytest.approx(float(exact_V[token]), abs=1e-5)
        best = exact_V.topk(min(num_top, vocab_size))
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-5)
