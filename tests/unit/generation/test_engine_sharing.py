"""Requests that made room for other owners' keep every promise: they answer as they do alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayloom.config import GenerationConfig
from rayloom.engine import Done, Engine, EngineOptions, NewToken, PromptScored
from rayloom.engine.plan import Plan
from rayloom.engine.request import EngineRequest, Hypothesis, TokenScore
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.resolving import Addressing
from rayloom.generation.types import GenerationRequest
from tests.unit.generation.conftest import TEXTS, make_engine_generator, make_generator

WORDS = " ".join(TEXTS[:3]).split()
SEARCHES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 1.3, "top_k": 40},
    {"do_sample": True, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2},
]
PROMISES: list[dict[str, Any]] = [
    {"json_schema": {"type": "array", "items": {"enum": ["red", "green", None, 7]}, "minItems": 1, "maxItems": 4}},
    {"json_schema": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}},
                     "required": ["name"], "additionalProperties": False}},
    {"regex": r"[a-c]{6,12}( indeed)?"},
    {"choice": ["Paris", "Paris, France", "Berlin", "日本"]},
    {"required_words": ["miller", "grain"]},
    {"forbidden_words": ["cat", "slow"], "repetition_penalty": 1.2},
    {"stop_strings": ["e", " a"]},
    {"min_new_tokens": 12, "logprobs": 2},
    {"score": 1},
]  # fmt: skip


@dataclass
class Told:
    """What an engine has told of one request."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    prompts: list[tuple[TokenScore, ...]] = field(default_factory=list)
    hypotheses: tuple[Hypothesis, ...] | None = None


class Watched:
    """An engine driven step by step, without its thread.

    Attributes:
        displaced: Requests that had to make room.
    """

    def __init__(self, generator: EngineGenerator) -> None:
        engine = generator.service._engine
        assert isinstance(engine, Engine)
        self.engine, self.told = engine, dict[int, Told]()
        self.displaced = set[int]()
        self._schedule = engine._scheduler.schedule
        engine._scheduler.schedule = self._noted  # type: ignore[method-assign]

    def submit(self, request: EngineRequest) -> int:
        group_id = self.engine.submit(request)
        self.told[group_id] = Told()
        return group_id

    def step(self) -> None:
        for event in self.engine.step():
            told = self.told[event.group_id]
            assert told.hypotheses is None, "nothing comes after the end"
            if isinstance(event, NewToken):
                told.tokens.setdefault(event.index, []).append(event.token)
            elif isinstance(event, PromptScored):
                assert not told.tokens
                told.prompts.append(event.scores)
            elif isinstance(event, Done):
                told.hypotheses = event.hypotheses

    def alone(self, request: EngineRequest) -> Told:
        group_id = self.submit(request)
        while self.engine.has_work:
            self.step()
        return self.told[group_id]

    def _noted(self) -> Plan:
        plan = self._schedule()
        self.displaced |= {group.group_id for group in plan.preempted}
        return plan


@pytest.fixture(params=["gpt2", "t5"])
def both(request: pytest.FixtureRequest) -> tuple[EngineGenerator, Watched, Watched]:
    """A resolver; an engine for company, with blocks enough for all; and one for each request alone."""
    theirs = make_generator(request.param)
    company, single = (make_engine_generator(theirs, EngineOptions(max_sequences=9, debug=True)) for _ in range(2))
    return company, Watched(company), Watched(single)


def drawn(draw: random.Random, generator: EngineGenerator, owner: str, promise: dict[str, Any]) -> EngineRequest:
    parameters = {"max_new_tokens": 30} | draw.choice(SEARCHES) | promise
    score = parameters.pop("score", None)
    if parameters.get("do_sample"):
        parameters["seed"] = draw.randrange(1000)
    if generator.resolver.window.seq2seq:
        score = None
    prompt = generator.resolver.tokenizer.encode(" ".join(draw.choices(WORDS, k=draw.randint(1, 6))))[:40]
    asked = GenerationRequest(prompt, GenerationConfig(**parameters), prompt_logprobs=score)
    return generator.resolver.resolve(asked, Addressing(owner=owner, priority=draw.choice([0, 0, 0, 1])))


def outcome(told: Told) -> list[tuple[object, ...]]:
    assert told.hypotheses is not None
    return [(each.tokens, each.reason) for each in told.hypotheses]


def scores(told: Told) -> list[float]:
    assert told.hypotheses is not None
    prompts = [score.logprob for prompt in told.prompts for score in prompt]
    return prompts + [score.logprob for each in told.hypotheses for score in each.logprobs or ()]


def test_promises_are_kept_though_owners_come_and_go(both: tuple[EngineGenerator, Watched, Watched]) -> None:
    generator, company, single = both
    draw = random.Random(7)
    order = [number for _ in range(4) for number in draw.sample(range(len(PROMISES)), len(PROMISES))]
    flood = [drawn(draw, generator, "flood", PROMISES[number]) for number in order]
    asked = {company.submit(request): request for request in flood}
    promises = dict(zip(asked, order, strict=True))
    step = 0
    while company.engine.has_work:
        step += 1
        if step % 4 == 0 and step < 300:
            request = drawn(draw, generator, f"owner {draw.randrange(12)}", {"max_new_tokens": draw.randint(1, 9)})
            asked[company.submit(request)] = request
        if step % 30 == 0:  # some leave, be they running, waiting, or waiting again
            live = [group_id for group_id in asked if company.told[group_id].hypotheses is None]
            for group_id in draw.sample(live, min(len(live), 1)):
                company.engine.cancel(group_id)
                del asked[group_id]
        company.step()
    for group_id, request in asked.items():
        found, expected = company.told[group_id], single.alone(request)
        assert outcome(found) == outcome(expected), request
        assert scores(found) == pytest.approx(scores(expected), abs=1e-4)
        assert len(found.prompts) == (request.params.prompt_logprobs is not None)
        if not request.params.is_beam:
            assert [tuple(found.tokens.get(index, ())) for index in range(len(outcome(found)))] == [
                tokens for tokens, _ in outcome(found)
            ], "every token is told, and none twice"
    displaced = {promises[group_id] for group_id in company.displaced & promises.keys() & asked.keys()}
    assert displaced >= {0, 1, 2, 3, 4, 5} | ({8} if not generator.resolver.window.seq2seq else set())
