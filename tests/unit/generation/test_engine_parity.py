"""The engine against ``transformers.generate``: random requests of all kinds in one batch, each compared with what
transformers gives for it alone."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from rayloom.config import GenerationConfig
from rayloom.engine import Engine, EngineOptions
from rayloom.engine.cache import CacheShape
from rayloom.engine.plan import Plan
from rayloom.engine.scheduler import Scheduler
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.transformers_generator import TransformersGenerator
from rayloom.generation.types import GeneratedSequence, GenerationRequest
from tests.unit.generation.conftest import TEXTS, make_engine_generator, make_generator

FAMILIES = ["gpt2", "gpt_neo", "llama", "t5"]
WORDS = " ".join(TEXTS[:3]).split()


def random_request(draw: random.Random, theirs: TransformersGenerator, **parameters: Any) -> GenerationRequest:
    tokenizer = theirs.tokenizer
    prompt = " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
    prefix = tokenizer.encode(draw.choice(WORDS)) if draw.random() < 0.2 else []
    config = GenerationConfig(**(random_parameters(draw) | parameters))
    return GenerationRequest(tokenizer.encode(prompt)[:48], config, prefix[:4])


def random_parameters(draw: random.Random) -> dict[str, Any]:
    beams = draw.choice([1, 1, 1, 2, 3, 5])
    found: dict[str, Any] = {"max_new_tokens": draw.randint(1, 24), "num_beams": beams}
    if beams > 1:
        found["num_return_sequences"] = draw.randint(1, beams)
        found["length_penalty"] = draw.choice([0.0, 0.5, 1.0, 1.0, 2.0])
        found["early_stopping"] = draw.choice([True, False, False, "never"])
    maybe = {
        "repetition_penalty": draw.choice([0.7, 1.3, 2.0]),
        "encoder_repetition_penalty": draw.choice([0.8, 1.5]),
        "no_repeat_ngram_size": draw.randint(1, 3),
        "min_new_tokens": draw.randint(0, found["max_new_tokens"]),
        "exponential_decay_length_penalty": (draw.randint(1, 6), draw.choice([1.05, 1.5])),
        "eos_token_id": [1, draw.randint(2, 399), draw.randint(2, 399)],
        "forbidden_words": draw.sample(WORDS, 2),
        "stop_strings": [draw.choice(["e", "a", "th", " s", "er", "qu"])],
        "logprobs": draw.randint(0, 3),
    }
    return found | {name: value for name, value in maybe.items() if draw.random() < 0.15}


def assert_same(ours: GeneratedSequence, theirs: GeneratedSequence, request: GenerationRequest) -> None:
    assert ours.token_ids == theirs.token_ids, request.config
    assert ours.text == theirs.text
    assert ours.finish_reason == theirs.finish_reason
    if theirs.score is not None:
        # Relative for large ones only: an exponential decay makes scores of thousands, beyond float32's fourth place.
        assert ours.score == pytest.approx(theirs.score, abs=1e-4, rel=1e-6)
    if theirs.logprobs is not None:
        assert ours.logprobs is not None
        assert [each.token_id for each in ours.logprobs] == [each.token_id for each in theirs.logprobs]
        for our, their in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert our.logprob == pytest.approx(their.logprob, abs=1e-4)
            assert [value for _, value in our.top] == pytest.approx([value for _, value in their.top], abs=1e-4)


def compare(family: str, num_requests: int, seed: int, options: EngineOptions, **parameters: Any) -> Engine:
    """Ask, and assert.

    Args:
        family: Of a tiny random model.
        num_requests: Random requests.
        seed: Of the requests and of the company that they keep.
        options: Of the engine.
        parameters: What all requests have in common.
    """
    theirs = make_generator(family)
    expected_of = make_generator(family)  # the engine's weights are views into its own model's
    engine = make_engine_generator(theirs, options)
    draw = random.Random(seed)
    requests = [random_request(draw, theirs, **parameters) for _ in range(num_requests)]
    outputs = in_random_company(engine, requests, draw)
    for request, output in zip(requests, outputs, strict=True):
        (expected,) = expected_of.generate([request], batch_size=1)
        assert len(output.sequences) == len(expected.sequences), request.config
        for ours, their in zip(output.sequences, expected.sequences, strict=True):
            assert_same(ours, their, request)
    core = engine.service._engine
    assert isinstance(core, Engine)
    return core


def in_random_company(engine: EngineGenerator, requests: list[GenerationRequest], draw: random.Random) -> list[Any]:
    """Several threads hand in shuffled shares, so that requests meet in ever other ways."""
    order = list(range(len(requests)))
    draw.shuffle(order)
    outputs: dict[int, Any] = {}

    def ask(places: list[int]) -> None:
        answers = engine.generate([requests[place] for place in places], batch_size=7)
        outputs.update(zip(places, answers, strict=True))

    threads = [threading.Thread(target=ask, args=(order[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outputs[place] for place in range(len(requests))]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family: str) -> None:
    compare(family, 40, 1, EngineOptions(max_sequences=16, max_step_tokens=48, debug=True))


def test_prompts_that_the_encoder_reads_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []
    computed = Scheduler.computed

    def watch(scheduler: Scheduler, plan: Plan) -> None:
        readings.append(plan.reading)
        computed(scheduler, plan)

    monkeypatch.setattr(Scheduler, "computed", watch)
    compare("t5", 20, 3, EngineOptions(max_sequences=16, max_step_tokens=18, debug=True))
    # How many steps read is a matter of timing; none would mean that nothing was tested.
    assert sum(reading is not None for reading in readings) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers_at_length(family: str, seed: int) -> None:
    compare(family, 200, seed, EngineOptions(max_sequences=24, debug=True))


@pytest.mark.parametrize(
    ("family", "num_kv_heads", "num_blocks", "num_beams"),
    [
        ("llama", 2, 20, 2),
        ("t5", 4, 16, 1),
        pytest.param("llama", 2, 20, 1, marks=pytest.mark.slow),
        pytest.param("t5", 4, 16, 2, marks=pytest.mark.slow),
    ],
)
def test_preemption_changes_nothing(family: str, num_kv_heads: int, num_blocks: int, num_beams: int) -> None:
    cache_bytes = num_blocks * CacheShape(num_layers=2, num_kv_heads=num_kv_heads, head_dim=8).block_bytes
    small = EngineOptions(max_sequences=12, max_step_tokens=32, cache_bytes=cache_bytes, debug=True)
    shape = {"num_beams": num_beams, "num_return_sequences": 1, "min_new_tokens": 36, "max_new_tokens": 36}
    core = compare(family, 24, 5, small, **shape)
    assert core.limits.num_blocks == num_blocks
    assert core._scheduler.num_preempted
