"""Promises about the whole answer, kept by every family, however the answer is searched for."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest

from rayloom.config import GenerationConfig
from rayloom.engine import EngineOptions
from rayloom.errors import RequestError
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.types import GeneratedSequence, GenerationRequest
from tests.unit.generation.conftest import TEXTS, make_engine_generator, make_generator

SEARCHES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3},
    {"do_sample": True, "seed": 4, "temperature": 1.5, "top_k": 40, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 4, "do_sample": True, "seed": 5},
]
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["red", "green", None, 7]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "boolean"}, {"type": "number"}]},
    {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}, "required": ["tags"]},
]
REGEXES = [r"[a-c]{2,5}", r"(yes|no|maybe)( indeed)?", r"\d{4}-\d{2}-\d{2}", r"[^a]*é?"]


@pytest.fixture(scope="module", params=["gpt2", "gpt_neo", "llama", "t5"])
def engine(request: pytest.FixtureRequest) -> EngineGenerator:
    return make_engine_generator(make_generator(request.param), EngineOptions(max_sequences=16))


def ask(engine: EngineGenerator, all_parameters: list[dict[str, Any]]) -> list[list[str]]:
    """Texts of random prompts, all asked together."""
    return [[each.text for each in sequences] for sequences in generate(engine, all_parameters)]


def generate(engine: EngineGenerator, all_parameters: list[dict[str, Any]]) -> list[list[GeneratedSequence]]:
    draw = random.Random(0)
    words = " ".join(TEXTS[:3]).split()
    requests = [
        GenerationRequest(
            engine.resolver.tokenizer.encode(" ".join(draw.choices(words, k=3))), GenerationConfig(**parameters)
        )
        for parameters in all_parameters
    ]
    return [output.sequences for output in engine.generate(requests, batch_size=16)]


def test_json_always_parses_and_follows_its_schema(engine: EngineGenerator) -> None:
    cases = [(schema, search) for schema in SCHEMAS for search in SEARCHES]
    answers = ask(engine, [{"json_schema": schema, "max_new_tokens": 60, **search} for schema, search in cases])
    for (schema, search), texts in zip(cases, answers, strict=True):
        for text in texts:
            jsonschema.validate(json.loads(text), schema)
        assert texts, search


def test_expressions_match_as_a_whole(engine: EngineGenerator) -> None:
    cases = [(regex, search) for regex in REGEXES for search in SEARCHES]
    answers = ask(engine, [{"regex": regex, "max_new_tokens": 30, **search} for regex, search in cases])
    for (regex, _), texts in zip(cases, answers, strict=True):
        assert all(re.fullmatch(regex, text) for text in texts), (regex, texts)


def test_an_answer_that_its_last_token_completes_was_not_cut(engine: EngineGenerator) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    cases = [{"max_new_tokens": most, **search} for most in (14, 17) for search in SEARCHES]
    lists = generate(engine, [{"json_schema": schema, **case} for case in cases])
    letters = generate(engine, [{"regex": "[a-z]+", **case} for case in cases])
    num_full = Counter[str]()
    for case, *pair in zip(cases, lists, letters, strict=True):
        for kind, sequences in zip(("list", "letters"), pair, strict=True):
            full = [each for each in sequences if len(each.token_ids) == case["max_new_tokens"]]
            num_full[kind] += len(full)
            assert {each.finish_reason for each in full} <= {"stop" if kind == "list" else "length"}, case
    assert min(num_full["list"], num_full["letters"]) > 0


def test_an_answer_out_of_a_list(engine: EngineGenerator) -> None:
    choices = ["Paris", "Paris, France", "Berlin", "日本"]
    for texts in ask(engine, [{"choice": choices, "max_new_tokens": 30, **search} for search in SEARCHES]):
        assert set(texts) <= set(choices)


def test_required_words_always_appear_and_forbidden_ones_never(engine: EngineGenerator) -> None:
    draw = random.Random(1)
    words = [word.strip(".,?!") for word in " ".join(TEXTS[:3]).split()]
    cases = []
    for search in SEARCHES * 3:
        required, forbidden = draw.sample(words, 2), ["cat", "slow"]
        required = [word for word in required if not word.startswith(("cat", "slow"))]
        cases.append({"required_words": required, "forbidden_words": forbidden, "max_new_tokens": 32, **search})
    for case, texts in zip(cases, ask(engine, cases), strict=True):
        for text in texts:
            assert all(word in text for word in case["required_words"]), (case, text)
            assert not re.search(r"\b(cat|slow)", text), (case, text)


def test_diverse_beams_differ_more_than_plain_ones(engine: EngineGenerator) -> None:
    shape = {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 8}
    plain, diverse = ask(engine, [shape, {**shape, "num_beam_groups": 3, "diversity_penalty": 5.0}])
    assert set(diverse) != set(plain)
    assert len({text[:3] for text in diverse}) >= len({text[:3] for text in plain})
    assert len(diverse) == 6


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"json_schema": {"type": "nothing known"}}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"regex": "a", "stop_strings": ["b"]}, "stop_strings"),
        ({"required_words": ["miller"], "json_schema": {"type": "string"}}, "required_words"),
        ({"required_words": ["miller", "grain"], "max_new_tokens": 1}, "required_words"),
        ({"required_words": ["miller"], "stop_strings": ["x"]}, "stop_strings"),
        ({"num_beams": 40}, "40 sequences"),
    ],
)
def test_what_cannot_be_promised_is_refused(engine: EngineGenerator, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        ask(engine, [parameters])
