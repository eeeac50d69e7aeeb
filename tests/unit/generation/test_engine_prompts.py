"""Log-probabilities of prompts, and what is told of answers while they grow."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch

from rayloom.config import GenerationConfig
from rayloom.engine import EngineOptions
from rayloom.errors import RequestError
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.streaming import WithoutStart
from rayloom.generation.transformers_generator import TransformersGenerator
from rayloom.generation.types import Chunk, GeneratedSequence, GenerationRequest, PromptLogprobs
from tests.unit.generation.conftest import TEXTS, make_engine_generator, make_generator

WORDS = " ".join(TEXTS[:3]).split()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request: pytest.FixtureRequest) -> tuple[TransformersGenerator, EngineGenerator]:
    theirs = make_generator(request.param)
    # Prompts are read in pieces of few tokens, and there is little room: groups are preempted.
    options = EngineOptions(max_sequences=6, max_step_tokens=12, debug=True)
    return theirs, make_engine_generator(theirs, options)


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def engine(request: pytest.FixtureRequest) -> EngineGenerator:
    return make_engine_generator(make_generator(request.param), EngineOptions(max_sequences=8, debug=True))


def request_of(engine: EngineGenerator, text: str, *, score: int | None = None, **parameters: Any) -> GenerationRequest:
    return GenerationRequest(
        engine.resolver.tokenizer.encode(text), GenerationConfig(**parameters), prompt_logprobs=score
    )


def test_prompts_are_scored_as_the_model_scores_them(both: tuple[TransformersGenerator, EngineGenerator]) -> None:
    theirs, engine = both
    draw = random.Random(0)
    requests = [
        request_of(engine, " ".join(draw.choices(WORDS, k=draw.randint(1, 12))), score=draw.choice([0, 3]),
                   max_new_tokens=draw.randint(1, 5), num_beams=draw.choice([1, 1, 2]))
        for _ in range(12)
    ]  # fmt: skip
    requests += [requests[0], requests[3]]  # nothing of them is taken from the prefix cache
    plain = [request_of(engine, " ".join(draw.choices(WORDS, k=8)), max_new_tokens=6) for _ in range(4)]
    outputs = engine.generate([*requests, *plain], batch_size=8)
    assert all(output.prompt_logprobs is None for output in outputs[len(requests) :])
    for request, output in zip(requests, outputs, strict=False):
        ids = torch.tensor([request.prompt_ids])
        with torch.no_grad():
            expected = theirs.model(ids).logits[0].float().log_softmax(dim=-1)
        told = output.prompt_logprobs
        assert told is not None
        assert [each.token_id for each in told] == request.prompt_ids[1:]
        for place, each in enumerate(told):
            assert each.logprob == pytest.approx(float(expected[place, each.token_id]), abs=1e-4)
            assert len(each.top) == request.prompt_logprobs
            if each.top:
                assert each.top[0][1] == pytest.approx(float(expected[place].max()), abs=1e-4)


def test_scoring_does_not_change_the_answer(both: tuple[TransformersGenerator, EngineGenerator]) -> None:
    _, engine = both
    for text in ("The river", " ".join(WORDS[:20])):
        plain, scored = (request_of(engine, text, score=score, max_new_tokens=8) for score in (None, 1))
        first, second = engine.generate([plain, scored], batch_size=2)
        assert first.sequences == second.sequences


def test_preempted_prompts_are_scored_once() -> None:
    theirs = make_generator("gpt2")
    block = open_blocks(theirs)
    engine = make_engine_generator(theirs, EngineOptions(max_sequences=3, max_step_tokens=8, cache_bytes=block * 8,
                                                         debug=True))  # fmt: skip
    requests = [request_of(engine, " ".join(WORDS[at : at + 8]), score=0, max_new_tokens=40, min_new_tokens=40)
                for at in range(0, 15, 3)]  # fmt: skip
    outputs = engine.generate(requests, batch_size=5)
    alone = [engine.generate([request], batch_size=1)[0] for request in requests]
    for output, single in zip(outputs, alone, strict=True):
        assert output.prompt_logprobs is not None
        assert single.prompt_logprobs is not None
        assert [each.logprob for each in output.prompt_logprobs] == pytest.approx(
            [each.logprob for each in single.prompt_logprobs], abs=1e-4
        )


def open_blocks(theirs: TransformersGenerator) -> int:
    """Bytes of one cache block."""
    engine = make_engine_generator(theirs).service._engine
    found: int = engine.runner.cache.shape.block_bytes  # type: ignore[attr-defined]
    return found


def test_seq2seq_models_do_not_predict_their_prompt() -> None:
    engine = make_engine_generator(make_generator("t5"))
    with pytest.raises(RequestError, match="no log-probabilities of its prompt"):
        engine.generate([request_of(engine, "river", score=0)], batch_size=1)


def test_biases_change_what_is_written(both: tuple[TransformersGenerator, EngineGenerator]) -> None:
    theirs, engine = both
    free = request_of(engine, "The river", max_new_tokens=6)
    (plain,) = engine.generate([free], batch_size=1)
    banned = plain.sequences[0].token_ids[0]
    for bias in ({banned: -100.0}, {7: 100.0}, {banned: -3.0, 9: 2.0}):
        for beams in (1, 2):
            request = request_of(engine, "The river", max_new_tokens=6, logit_bias=bias, num_beams=beams)
            (ours,), (oracle,) = (each.generate([request], batch_size=1) for each in (engine, theirs))
            assert [each.token_ids for each in ours.sequences] == [each.token_ids for each in oracle.sequences]
            assert bias.get(banned) != -100.0 or banned not in ours.sequences[0].token_ids
    with pytest.raises(RequestError, match="logit_bias: the model has no token 5000"):
        engine.generate([request_of(engine, "x", logit_bias={5000: 1.0})], batch_size=1)
    with pytest.raises(RequestError, match="eos_token_id: the model has no token 5000"):
        engine.generate([request_of(engine, "x", eos_token_id=[1, 5000])], batch_size=1)


async def told(engine: EngineGenerator, request: GenerationRequest, start: str = "") -> list[Chunk | PromptLogprobs]:
    return [chunk async for chunk in engine.chunks(request, start=start)]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"logprobs": 2},
        {"logprobs": 0, "stop_strings": ["e", "zz"]},
        {"do_sample": True, "seed": 5, "num_return_sequences": 3, "logprobs": 1, "stop_strings": [" a", "t"]},
        {"num_beams": 3, "num_return_sequences": 2, "logprobs": 1},
        {"num_beams": 2},
    ],
    ids=str,
)
def test_chunks_are_what_is_answered_whole(engine: EngineGenerator, parameters: dict[str, Any]) -> None:
    for word in WORDS[:6]:
        request = request_of(engine, word, max_new_tokens=20, **parameters)
        (output,) = engine.generate([request], batch_size=1)
        chunks = asyncio.run(told(engine, request))
        for index, sequence in enumerate(output.sequences):
            mine = [chunk for chunk in chunks if isinstance(chunk, Chunk) and chunk.index == index]
            assert "".join(chunk.text for chunk in mine) == sequence.text
            assert sum(chunk.num_tokens for chunk in mine) == len(sequence.token_ids)
            assert [chunk.finish_reason for chunk in mine if chunk.finish_reason] == [sequence.finish_reason]
            check_tokens(mine, sequence, parameters)


def check_tokens(chunks: list[Chunk], sequence: GeneratedSequence, parameters: dict[str, Any]) -> None:
    """No token is told before its text, nor any that a stop string has cut off; each begins where it says."""
    if "logprobs" not in parameters:
        assert not any(chunk.logprobs for chunk in chunks)
        return
    shown, text = 0, sequence.text
    for chunk in chunks:
        shown += len(chunk.text)
        for logprob, offset in zip(chunk.logprobs, chunk.offsets, strict=True):
            assert offset <= shown
            whole = logprob.token.strip("\ufffd")
            if whole == logprob.token:
                assert text[offset:].startswith(whole) or text[offset:].startswith(whole.lstrip())
                assert offset + len(whole.lstrip()) <= shown
    assert sequence.logprobs is not None
    told = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert told == sequence.logprobs[: len(told)]
    assert "stop_strings" in parameters or len(told) == len(sequence.logprobs)


def test_no_chunk_ends_in_the_middle_of_a_character(engine: EngineGenerator) -> None:
    tokenizer = engine.resolver.tokenizer
    prefix = tokenizer.encode("日本語 😀 naïve café", add_special_tokens=False)
    request = GenerationRequest(tokenizer.encode("The"), GenerationConfig(max_new_tokens=8, logprobs=0), prefix)
    (output,) = engine.generate([request], batch_size=1)
    chunks = [chunk for chunk in asyncio.run(told(engine, request)) if isinstance(chunk, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert not any(chunk.text.endswith("\ufffd") for chunk in chunks[:-1])
    assert sum(chunk.num_tokens for chunk in chunks) == len(output.sequences[0].token_ids)


def test_the_prompts_scores_come_first() -> None:
    engine = make_engine_generator(make_generator("gpt2"))
    request = request_of(engine, "The river flows", score=1, max_new_tokens=3)
    first, *rest = asyncio.run(told(engine, request))
    assert isinstance(first, PromptLogprobs)
    assert list(first.logprobs) == engine.generate([request], batch_size=1)[0].prompt_logprobs
    assert all(isinstance(chunk, Chunk) for chunk in rest)


def test_the_end_of_sequence_is_told_with_its_score() -> None:
    engine = make_engine_generator(make_generator("gpt2"))
    eos = engine.resolver.tokenizer.eos_token_id
    request = request_of(engine, "The river", max_new_tokens=5, logprobs=1, logit_bias={eos: 100.0})
    (output,) = engine.generate([request], batch_size=1)
    end = output.sequences[0].end
    assert output.sequences[0].token_ids == []
    assert end is not None
    assert end.token_id == eos
    assert end.logprob < 0.0  # of the model itself, not of what the bias made of it
    *_, last = asyncio.run(told(engine, request))
    assert isinstance(last, Chunk)
    assert last.end == end


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [([" a", "b"], "ab"), (["", " ", "a"], "a"), (["a", " b"], "a b"), ([" "], ""), ([], ""), (["", ""], "")],
)
def test_a_start_is_taken_off_once(pieces: list[str], whole: str) -> None:
    cutter = WithoutStart(" ")
    assert "".join([*map(cutter.add, pieces), cutter.finish()]) == whole
    assert cutter.num_cut == (1 if "".join(pieces).startswith(" ") else 0)
