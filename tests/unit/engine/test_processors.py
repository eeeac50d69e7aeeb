"""Processors and warpers against transformers' own, row by row."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from rayloom.engine.processors import apply_masks, process
from rayloom.engine.request import EngineRequest, Params
from rayloom.engine.rows import RowStates
from tests.unit.engine.rows_oracle import (
    PROCESSING,
    VOCAB,
    WARPING,
    allowed_bits,
    expected,
    random_request,
    random_tokens,
)

_ROWS = 12
_SLOTS = 16


def _check(processed_RV: torch.Tensor, expected_RV: torch.Tensor, scores_RV: torch.Tensor) -> None:
    dead_R = ~expected_RV.isfinite().any(dim=1)
    assert torch.equal(processed_RV.isneginf(), expected_RV.isneginf())
    torch.testing.assert_close(processed_RV[~dead_R], expected_RV[~dead_R], rtol=1e-6, atol=1e-6)


def _run(requests: list[EngineRequest], draw: random.Random, *, is_log: bool = False) -> None:
    """Open rows for these requests in random slots, and compare with transformers."""
    states = RowStates(_SLOTS, VOCAB, 64)
    slots = draw.sample(range(_SLOTS), len(requests))
    scores_RV = 3 * torch.randn(len(requests), VOCAB, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
    if is_log:
        scores_RV = scores_RV.log_softmax(dim=1)
    rows = []
    for slot, request, scores_V in zip(slots, requests, scores_RV, strict=True):
        tokens = random_tokens(draw, request)
        states.open(slot, request, tokens, 0)
        rows.append(expected(request, tokens, scores_V))
    before_RV = scores_RV.clone()
    processed_RV = process(scores_RV, slots, states)
    assert torch.equal(scores_RV, before_RV), "the caller's scores were changed"
    _check(processed_RV, torch.stack(rows), scores_RV)
    overwritten_RV = process(scores_RV, slots, states, overwrite=True)
    assert overwritten_RV is scores_RV
    assert torch.equal(overwritten_RV, processed_RV)


@pytest.mark.parametrize("name", [*PROCESSING, *WARPING])
def test_each_parameter_alone(name: str) -> None:
    draw = random.Random(name)
    for _ in range(6):
        requests = []
        for _ in range(_ROWS):
            plain = random_request(draw, share=0.0)
            make = (PROCESSING | WARPING)[name]
            params = Params(
                max_new_tokens=plain.params.max_new_tokens,
                eos_token_ids=plain.params.eos_token_ids or (3,),
                num_beams=plain.params.num_beams,
                do_sample=name in WARPING,
                **({name: make(draw)} if draw.random() < 0.8 else {}),
            )
            requests.append(EngineRequest(start_ids=plain.start_ids, encoder_ids=plain.encoder_ids, params=params))
        _run(requests, draw)


def test_biases_of_single_tokens() -> None:
    """Beside other parameters, and rows without any; transformers knows them as `sequence_bias`."""
    draw = random.Random(4)
    for _ in range(12):
        requests = []
        for _ in range(_ROWS):
            tokens = draw.sample(range(VOCAB), draw.randint(0, 6))
            biases = tuple((token, draw.uniform(-5.0, 5.0)) for token in tokens)
            plain = random_request(draw, share=0.1)
            params = dataclasses.replace(plain.params, logit_bias=biases)
            requests.append(dataclasses.replace(plain, params=params))
        _run(requests, draw)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("is_log", [False, True])
def test_random_combinations(share: float, is_log: bool) -> None:
    draw = random.Random(f"{share} {is_log}")
    for _ in range(25):
        _run([random_request(draw, share=share) for _ in range(_ROWS)], draw, is_log=is_log)


def test_all_rows_alike_take_the_uncopied_way() -> None:
    draw = random.Random(5)
    for _ in range(20):
        request = random_request(draw, share=0.5)
        _run([request] * _ROWS, draw)


def test_nothing_to_do_costs_nothing() -> None:
    states = RowStates(4, VOCAB, 64)
    for slot in range(4):
        request = EngineRequest(start_ids=(1, 2), params=Params(max_new_tokens=4, do_sample=slot % 2 == 0))
        states.open(slot, request, [1, 2], 0)
    scores_RV = torch.randn(4, VOCAB)
    assert process(scores_RV, [0, 1, 2, 3], states) is scores_RV
    assert process(scores_RV, [0, 1, 2, 3], states, [None] * 4) is scores_RV


def test_warpers_over_a_large_vocabulary() -> None:
    """Nuclei found among the first few hundred values, the next few thousand, and all; candidates by cells."""
    vocab_size, draw = 6001, random.Random(2)
    settings = [
        {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999}, {"typical_p": 0.2}, {"typical_p": 0.9},
        {"top_k": 50}, {"top_k": 50, "top_p": 0.8}, {"top_k": 1500, "typical_p": 0.5}, {"top_k": 5000, "top_p": 0.97},
        {"min_p": 0.1, "epsilon_cutoff": 3e-4}, {"eta_cutoff": 3e-4, "temperature": 0.7},
    ]  # fmt: skip
    for scale in (0.2, 1.0, 4.0):
        requests = [
            EngineRequest(start_ids=(1,), params=Params(max_new_tokens=9, do_sample=True, num_beams=beams, **setting))
            for setting in settings
            for beams in (1, 2)
        ]
        states = RowStates(len(requests), vocab_size, 16)
        generator = torch.Generator().manual_seed(draw.randrange(2**31))
        scores_RV = scale * torch.randn(len(requests), vocab_size, generator=generator)
        rows = []
        for slot, (request, scores_V) in enumerate(zip(requests, scores_RV, strict=True)):
            states.open(slot, request, [1], 0)
            rows.append(expected(request, [1], scores_V))
        _check(process(scores_RV, list(range(len(requests))), states), torch.stack(rows), scores_RV)


def test_equal_scores_stay_together() -> None:
    params = Params(max_new_tokens=5, do_sample=True, top_k=2)
    states = RowStates(2, 300, 8)
    states.open(0, EngineRequest(start_ids=(1,), params=params), [1], 0)
    states.open(1, EngineRequest(start_ids=(1,), params=params), [1], 0)
    scores_RV = torch.arange(300.0).repeat(2, 1)
    scores_RV[0, [7, 70, 170]] = 1000.0
    kept = process(scores_RV, [0, 1], states).isfinite()
    assert kept[0].nonzero()[:, 0].tolist() == [7, 70, 170]
    assert kept[1].nonzero()[:, 0].tolist() == [298, 299]


def test_tokens_that_the_model_cannot_score_are_ignored() -> None:
    """A causal model may embed more tokens than it predicts (padding of the embedding is the usual case reversed)."""
    draw = random.Random(8)
    for tokens in ([VOCAB + 3, 5, 6, VOCAB + 3, 5], [VOCAB + 1], [VOCAB, VOCAB, 2]):
        params = Params(max_new_tokens=5, repetition_penalty=1.9, no_repeat_ngram_size=2)
        request = EngineRequest(start_ids=tuple(tokens), params=params)
        states = RowStates(1, VOCAB, 64)
        states.open(0, request, tokens, 0)
        for _ in range(4):
            scores_RV = torch.randn(1, VOCAB)
            _check(process(scores_RV, [0], states), expected(request, tokens, scores_RV[0])[None], scores_RV)
            tokens.append(draw.randrange(VOCAB))
            states.append([0], tokens[-1:])


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 61, 200])
def test_masks(vocab_size: int) -> None:
    draw = torch.Generator().manual_seed(vocab_size)
    for _ in range(10):
        scores_RV = torch.randn(6, vocab_size, generator=draw)
        allowed_RV = torch.rand(6, vocab_size, generator=draw) < 0.4
        free_R = torch.rand(6, generator=draw) < 0.3
        masks = [None if free else allowed_bits(allowed) for free, allowed in zip(free_R, allowed_RV, strict=True)]
        expected_RV = scores_RV.masked_fill(~(allowed_RV | free_R[:, None]), -torch.inf)
        longer = [None if mask is None else np.append(mask, np.uint32(7)) for mask in masks]
        assert torch.equal(apply_masks(scores_RV.clone(), masks), expected_RV)
        assert torch.equal(apply_masks(scores_RV, longer), expected_RV)


def test_masks_come_between_processors_and_warpers() -> None:
    """Of the allowed tokens the likeliest two stay, not those of the likeliest two that are allowed."""
    request = EngineRequest(
        start_ids=(1,), params=Params(max_new_tokens=5, do_sample=True, top_k=2, suppress_tokens=(4,))
    )
    states = RowStates(2, VOCAB, 8)
    states.open(1, request, [1], 0)
    scores_RV = torch.arange(VOCAB, 0, -1.0)[None]
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[[4, 20, 30, 40]] = True
    kept = process(scores_RV, [1], states, [allowed_bits(allowed)]).isfinite()
    assert kept[0].nonzero()[:, 0].tolist() == [20, 30]


def test_a_mask_wins_over_bans_that_leave_nothing() -> None:
    request = EngineRequest(start_ids=(1, 5, 9), params=Params(max_new_tokens=5, no_repeat_ngram_size=1))
    states = RowStates(3, VOCAB, 8)
    for slot in range(3):
        states.open(slot, request, [1, 5, 9], 0)
    scores_RV = torch.randn(3, VOCAB)
    seen = torch.zeros(VOCAB, dtype=torch.bool)
    seen[[5, 9]] = True
    more = seen.clone()
    more[10] = True
    for overwrite in (False, True):
        given_RV = scores_RV.clone()
        processed_RV = process(
            given_RV, [0, 1, 2], states, [allowed_bits(seen), None, allowed_bits(more)], overwrite=overwrite
        )
        assert torch.equal(processed_RV[0], scores_RV[0].masked_fill(~seen, -torch.inf))
        assert processed_RV[1].isfinite().sum() == VOCAB - 3
        assert processed_RV[2].isfinite().nonzero()[:, 0].tolist() == [10]
