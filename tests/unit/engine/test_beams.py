"""Plain beams and beam sampling against transformers.generate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from rayloom.engine.beams import BeamSearch, advance
from rayloom.engine.request import EngineRequest, Hypothesis, Params
from rayloom.errors import RequestError
from tests.unit.engine.beam_toys import Drive, RowProcess, Table, TableModel

PAD = 0


def pair_stop(pair: tuple[int, int] | None) -> Any:
    return None if pair is None else (lambda tokens: tuple(tokens[-2:]) == pair)


class PairCriterion(StoppingCriteria):
    def __init__(self, pair: tuple[int, int]) -> None:
        self.pair_2 = torch.tensor(pair)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids[:, -2:] == self.pair_2).all(1)


class Case:
    """One random request, its processors, and what transformers makes of it."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        vocab_size = rng.choice([7, 20, 300])
        self.table = Table(vocab_size, seed, scale=rng.choice([0.5, 2.0]))
        width = rng.choice([2, 3, 4, 5])
        self.eos = tuple(rng.sample(range(1, vocab_size), rng.choice([0, 1, 1, 1, 2])))
        self.start = tuple(rng.choices(range(vocab_size), k=rng.randint(2, 4)))
        self.pair = (rng.randrange(1, vocab_size), rng.randrange(1, vocab_size)) if rng.random() < 0.3 else None
        self.params = Params(
            max_new_tokens=rng.randint(1, 14),
            num_beams=width,
            num_return_sequences=rng.randint(1, width),
            early_stopping=rng.choice([True, False, "never"]),
            length_penalty=rng.choice([1.0, 0.0, -0.5, 0.6, 2.0]),
            eos_token_ids=self.eos,
            pad_token_id=PAD,
            logprobs=rng.choice([None, 0, 2]),
        )
        self.extras: dict[str, Any] = {}
        if rng.random() < 0.3:
            self.extras["repetition_penalty"] = 1.3
        if rng.random() < 0.3 and vocab_size > 7:
            self.extras["no_repeat_ngram_size"] = 2
        if rng.random() < 0.3 and self.eos:
            self.extras["min_new_tokens"] = min(4, self.params.max_new_tokens)
        if rng.random() < 0.25:
            self.boost_eos()

    def boost_eos(self) -> None:
        self.table.last_VV[:, list(self.eos)] += 2.0

    @property
    def request(self) -> EngineRequest:
        return EngineRequest(start_ids=self.start, params=self.params, stop=pair_stop(self.pair))

    def process(self, tokens: list[int], scores_V: torch.Tensor) -> torch.Tensor:
        processors = LogitsProcessorList()
        if "repetition_penalty" in self.extras:
            processors.append(RepetitionPenaltyLogitsProcessor(1.3))
        if "no_repeat_ngram_size" in self.extras:
            processors.append(NoRepeatNGramLogitsProcessor(2))
        if "min_new_tokens" in self.extras:
            least = self.extras["min_new_tokens"]
            processors.append(MinNewTokensLengthLogitsProcessor(len(self.start), least, list(self.eos)))
        return processors(torch.tensor([tokens]), scores_V[None])[0]

    def expected(self) -> list[tuple[tuple[int, ...], float]]:
        params = self.params
        criteria = [PairCriterion(self.pair)] if self.pair else []
        output = TableModel(self.table).generate(
            torch.tensor([self.start]),
            attention_mask=torch.ones(1, len(self.start), dtype=torch.long),
            max_new_tokens=params.max_new_tokens,
            num_beams=params.num_beams,
            num_return_sequences=params.num_return_sequences,
            early_stopping=params.early_stopping,
            length_penalty=params.length_penalty,
            eos_token_id=list(self.eos) or None,
            pad_token_id=PAD,
            do_sample=False,
            use_cache=False,
            stopping_criteria=StoppingCriteriaList(criteria),
            output_scores=True,
            return_dict_in_generate=True,
            **self.extras,
        )
        sizes = (output.beam_indices >= 0).sum(1).tolist()
        rows = [row[len(self.start) :][:size] for row, size in zip(output.sequences.tolist(), sizes, strict=True)]
        cut = [tuple(row[:-1] if row[-1] in self.eos else row) for row in rows]
        return list(zip(cut, output.sequences_scores.tolist(), strict=True))


def check_equal(found: Sequence[Hypothesis], expected: Sequence[tuple[tuple[int, ...], float]]) -> None:
    assert [item.tokens for item in found] == [tokens for tokens, _ in expected]
    assert [item.score for item in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("chunk", range(8))
def test_equals_transformers_alone_and_in_company(chunk: int) -> None:
    cases = [Case(chunk * 14 + number) for number in range(14)]
    alone = [Drive(case.table, {0: case.process}).run([case.request])[0] for case in cases]
    for case, found in zip(cases, alone, strict=True):
        check_equal(found, case.expected())
    for size in {case.table.vocab_size for case in cases}:
        check_company(size, chunk)


def check_company(vocab_size: int, seed: int) -> None:
    """Many widths and ages in one step give what each gives alone."""
    cases = [case for case in map(Case, range(1000 * seed, 1000 * seed + 12)) if case.table.vocab_size == vocab_size]
    if not cases:
        return
    table = cases[0].table
    processes: dict[int, RowProcess] = {number: case.process for number, case in enumerate(cases)}
    together = Drive(table, processes).run(
        [case.request for case in cases], [3 * number % 7 for number in range(len(cases))]
    )
    for case, found in zip(cases, together, strict=True):
        assert found == Drive(table, {0: case.process}).run([case.request])[0]


def test_why_it_ended_and_logprobs_of_the_model_itself() -> None:
    reasons = Counter()
    for case in map(Case, range(500, 560)):
        for item in Drive(case.table, {0: case.process}).run([case.request])[0]:
            reasons[item.reason] += 1
            if case.params.logprobs is None:
                assert item.logprobs is None
                continue
            assert item.logprobs is not None
            assert len(item.logprobs) == len(item.tokens)
            for place, (token, score) in enumerate(zip(item.tokens, item.logprobs, strict=True)):
                logprobs_V = case.table.next_logits([*case.start, *item.tokens[:place]]).log_softmax(0)
                assert score.logprob == pytest.approx(float(logprobs_V[token]), abs=1e-5)
                best = logprobs_V.topk(case.params.logprobs)
                assert [token for token, _ in score.top] == best.indices.tolist()
            is_full = len(item.tokens) == case.params.max_new_tokens
            is_stopped = case.pair is not None and (*case.start, *item.tokens)[-2:] == case.pair
            assert item.reason == ("length" if is_full and not is_stopped else "stop")
    assert reasons["stop"] > 20
    assert reasons["length"] > 20


def two_beams(**settings: Any) -> EngineRequest:
    return EngineRequest(start_ids=(1, 2), params=Params(**{"max_new_tokens": 9, "num_beams": 2, **settings}))


def test_giving_up_answers_with_live_beams() -> None:
    search = BeamSearch(two_beams(num_return_sequences=2))
    rows = [[[1, 2]]]
    Drive(Table(20, seed=1)).step([0], [search], rows)
    answers = search.give_up()
    assert search.done
    assert [[1, 2, *item.tokens] for item in answers] == rows[0]
    assert {item.reason for item in answers} == {"time"}


def test_fewer_beams_and_answers_where_masks_leave_fewer() -> None:
    allowed = {3, 4}

    def process(tokens: list[int], scores_V: torch.Tensor) -> torch.Tensor:
        keep = torch.tensor([token in (allowed if len(tokens) == 2 else {5}) for token in range(20)])
        return scores_V.masked_fill(~keep, -torch.inf)

    request = two_beams(num_beams=4, num_return_sequences=4, eos_token_ids=(5,))
    found = Drive(Table(20, seed=1), {0: process}).run([request])[0]
    assert {item.tokens for item in found} == {(3,), (4,)}


def test_nothing_allowed_ends_with_what_there_is() -> None:
    def process(tokens: list[int], scores_V: torch.Tensor) -> torch.Tensor:
        return scores_V if len(tokens) < 5 else torch.full_like(scores_V, -torch.inf)

    free = Drive(Table(20, seed=1)).run([two_beams(max_new_tokens=3)])[0]
    for settings in ({}, {"do_sample": True}):
        found = Drive(Table(20, seed=1), {0: process}).run([two_beams(**settings)])[0]
        assert len(found) == 1
        assert len(found[0].tokens) == 3
        assert found[0].reason == "length"
        assert settings or found[0] == free[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3},
        {"num_beams": 5, "num_beam_groups": 2},
        {"num_beam_groups": 2, "do_sample": True},
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="num_"):
        BeamSearch(two_beams(**settings))


def test_no_searches_is_no_work() -> None:
    assert advance([], torch.zeros(0, 5), [], lambda scores_RV, _: scores_RV) == []
