"""Diverse beams and lexically constrained beams against plainly written references."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rayloom.engine.request import EngineRequest, Hypothesis, Params
from rayloom.engine.required import RequiredWords
from tests.unit.engine.beam_references import (
    LogProbs,
    Phrases,
    PlainBeams,
    Settings,
    Text,
    diverse,
    everything_possible,
    naive_need,
    occurs,
)
from tests.unit.engine.beam_toys import Drive, RowProcess, Table, masked

EOS = 1
START = (2, 3)


def log_probs_of(table: Table) -> LogProbs:
    return lambda text: table.next_logits([*START, *text]).log_softmax(0).tolist()


def request_of(settings: Settings, words: RequiredWords | None = None, **more: Any) -> EngineRequest:
    params = Params(
        **{
            "max_new_tokens": settings.max_new_tokens,
            "num_beams": settings.width,
            "num_return_sequences": more.get("num_beams", settings.width),
            "eos_token_ids": settings.eos,
            "length_penalty": settings.length_penalty,
            "early_stopping": settings.early_stopping,
            **more,
        }
    )
    return EngineRequest(start_ids=START, params=params, constraints=(words,) if words else ())


def random_settings(rng: random.Random, vocab_size: int) -> Settings:
    return Settings(
        width=rng.choice([1, 2, 3]),
        max_new_tokens=rng.randint(1, 10),
        eos=(EOS, 5) if rng.random() < 0.2 else (EOS,),
        length_penalty=rng.choice([1.0, 0.0, 2.0, -0.5]),
        early_stopping=rng.choice([True, False, "never"]),
        vocab_size=vocab_size,
    )


def check_equal(found: Sequence[Hypothesis], expected: Sequence[tuple[float, Text]]) -> None:
    assert [item.score for item in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [item.tokens for item in found] == [text for _, text in expected]


@pytest.mark.parametrize("seed", range(80))
def test_diverse_beams_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    table = Table(rng.choice([8, 40]), seed, scale=rng.choice([0.5, 1.5]))
    settings = random_settings(rng, table.vocab_size)
    num_groups, penalty = rng.choice([2, 3, 4]), rng.choice([0.3, 1.0, 5.0])
    request = request_of(
        settings, num_beams=num_groups * settings.width, num_beam_groups=num_groups, diversity_penalty=penalty
    )
    expected = diverse(settings, log_probs_of(table), num_groups, penalty)
    check_equal(Drive(table).run([request])[0], expected)


def test_diverse_and_plain_beams_in_one_batch() -> None:
    rng = random.Random(0)
    table = Table(40, 1)
    requests = []
    for number in range(20):
        settings = random_settings(rng, 40)
        groups = rng.choice([1, 2, 4])
        width = max(2, groups * settings.width)
        width -= width % groups
        more = {"num_beam_groups": groups, "diversity_penalty": 1.0, "logprobs": number % 3 or None}
        requests.append(request_of(settings, num_beams=width, **more))
    alone = [Drive(table).run([request])[0] for request in requests]
    assert Drive(table).run(requests, [5 * number % 9 for number in range(20)]) == alone


def test_diverse_groups_differ_where_the_penalty_is_large() -> None:
    settings = Settings(width=4, max_new_tokens=5, eos=())
    table = Table(40, 3)
    found = Drive(table).run([request_of(settings, num_beam_groups=4, diversity_penalty=100.0)])[0]
    for tokens in zip(*(item.tokens for item in found), strict=True):
        assert len(set(tokens)) == 4


def random_phrases(rng: random.Random) -> list[list[list[int]]]:
    ways = [[rng.randrange(2, 9) for _ in range(rng.randint(1, 3))] for _ in range(4)]
    return [ways[:1], ways[1:3], ways[3:]][: rng.randint(1, 3)]


def process_of(words: RequiredWords, start: int) -> RowProcess:
    """What the engine does: each sequence has its own fork, and its mask is applied."""

    def process(tokens: list[int], scores_V: torch.Tensor) -> torch.Tensor:
        own = words.fork()
        for token in tokens[start:]:
            own.advance(token)
        return masked(scores_V, own.mask())

    return process


def constrained_case(seed: int, **more: Any) -> tuple[Table, Settings, EngineRequest, RowProcess]:
    rng = random.Random(seed)
    table = Table(rng.choice([9, 20]), seed, scale=rng.choice([0.5, 1.5]))
    settings = random_settings(rng, table.vocab_size)
    settings.width, settings.eos = rng.choice([2, 3, 5]), (EOS,)
    settings.phrases = random_phrases(rng)
    settings.max_new_tokens = naive_need((), settings.phrases) + rng.choice([0, 1, 3, 5])
    words = RequiredWords(settings.phrases, settings.eos, settings.max_new_tokens, table.vocab_size)
    return table, settings, request_of(settings, words, **more), process_of(words, len(START))


@pytest.mark.parametrize("seed", range(50))
def test_constrained_beams_equal_the_reference(seed: int) -> None:
    table, settings, request, process = constrained_case(seed)
    reference = PlainBeams(settings, log_probs_of(table))
    while reference.live:
        reference.step({})
    found = Drive(table, {0: process}).run([request])[0]
    check_equal(found, reference.finished)
    assert found
    assert all(contains(item.tokens, settings.phrases) for item in found)


@pytest.mark.parametrize(
    "more", [{"do_sample": True}, {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"logprobs": 1}]
)
def test_required_words_appear_in_company_and_in_every_kind_of_search(more: dict[str, Any]) -> None:
    cases = [case for case in (constrained_case(seed, **more) for seed in range(200, 230)) if case[0].vocab_size == 20]
    processes = {number: process for number, (_, _, _, process) in enumerate(cases)}
    plain = request_of(Settings(width=3, max_new_tokens=6, eos=(EOS,)))
    requests = [*(request for _, _, request, _ in cases), plain]
    table = cases[0][0]
    found = Drive(table, processes).run(requests, [2 * number % 5 for number in range(len(requests))])
    assert found[-1] == Drive(table).run([plain])[0]
    for (_, settings, request, process), answers in zip(cases, found, strict=False):
        assert answers
        assert answers == Drive(table, {0: process}).run([request])[0]
        assert all(contains(item.tokens, settings.phrases) for item in answers)


def contains(text: Text, phrases: Phrases) -> bool:
    return all(any(occurs(way, text) for way in ways) for ways in phrases)


@pytest.mark.parametrize("seed", range(5))
def test_wide_beams_find_the_best_of_all_answers_with_the_words(seed: int) -> None:
    table = Table(5, seed, scale=0.5)
    settings = Settings(600, 4, (EOS,), length_penalty=0.0, early_stopping="never", vocab_size=5)
    settings.phrases = [[[2, 3], [3, 0]], [[4]]]
    words = RequiredWords(settings.phrases, settings.eos, 4, 5)
    found = Drive(table, {0: process_of(words, 2)}).run([request_of(settings, words, num_return_sequences=600)])[0]
    everything = everything_possible(log_probs_of(table), 5, 4, EOS)
    check_equal(found, [(score, text) for score, text in everything if contains(text, settings.phrases)])


def test_banks_find_likelier_answers_than_a_mask_alone() -> None:
    """What the banks are for: words find their place before the room runs out. On average, not in each case: over 400
    seeds better in 167, worse in 82 (sums compared, without length penalty)."""
    gains = []
    for seed in range(150):
        table, _, request, process = constrained_case(seed, length_penalty=0.0, early_stopping="never")
        masked_only = EngineRequest(start_ids=START, params=request.params)
        with_banks, without = (Drive(table, {0: process}).run([one])[0][0] for one in (request, masked_only))
        gains.append((with_banks.score or 0.0) - (without.score or 0.0))
    assert sum(gains) > 0
    assert sum(gain > 1e-4 for gain in gains) > sum(gain < -1e-4 for gain in gains)


def test_a_stop_string_ends_no_beam_that_lacks_a_word() -> None:
    table = Table(9, 4)
    settings = Settings(3, 8, (EOS,), phrases=[[[7, 8]]], vocab_size=9)
    words = RequiredWords(settings.phrases, settings.eos, 8, 9)
    request = request_of(settings, words)
    stopping = EngineRequest(
        start_ids=START, params=request.params, constraints=(words,), stop=lambda tokens: tokens[-1] in (2, 3, 4, 5)
    )
    found = Drive(table, {0: process_of(words, 2)}).run([stopping])[0]
    assert found
    assert all(contains(item.tokens, settings.phrases) for item in found)
