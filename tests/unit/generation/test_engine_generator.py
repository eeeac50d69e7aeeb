"""The generator over the engine: streaming, cancelling, seeds, adapters in one batch, failures."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayloom.config import GenerationConfig, LoraConfig
from rayloom.engine import Engine, EngineOptions
from rayloom.engine.batch import StepBatch
from rayloom.errors import EngineError, ModelError, RequestError
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.resolving import Addressing
from rayloom.generation.transformers_generator import TransformersGenerator
from rayloom.generation.types import GenerationRequest
from rayloom.models import attach_lora, family_of
from tests.unit.generation.conftest import TEXTS, make_engine_generator, make_generator

WORDS = " ".join(TEXTS[:3]).split()


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def engine(request: pytest.FixtureRequest) -> EngineGenerator:
    return make_engine_generator(make_generator(request.param), EngineOptions(max_sequences=8, debug=True))


def request_of(engine: EngineGenerator, text: str, **parameters: Any) -> GenerationRequest:
    return GenerationRequest(engine.resolver.tokenizer.encode(text), GenerationConfig(**parameters))


def core(engine: EngineGenerator) -> Engine:
    found = engine.service._engine
    assert isinstance(found, Engine)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"stop_strings": ["e"]}, {"do_sample": True, "seed": 3}, {"forbidden_words": ["cat"]}, {"min_new_tokens": 20}],
    ids=str,
)
def test_streamed_pieces_are_the_generated_text(engine: EngineGenerator, parameters: dict[str, Any]) -> None:
    for word in WORDS[:8]:
        request = request_of(engine, word, max_new_tokens=24, **parameters)
        (output,) = engine.generate([request], batch_size=1)
        assert "".join(engine.stream(request)) == output.text


def test_a_streamed_multibyte_character_comes_whole(engine: EngineGenerator) -> None:
    tokenizer = engine.resolver.tokenizer
    prefix = tokenizer.encode("日本語 😀 naïve")
    request = GenerationRequest(tokenizer.encode("The"), GenerationConfig(max_new_tokens=8), prefix)
    for piece in list(engine.stream(request))[:-1]:
        assert not piece.endswith("\ufffd")


def test_an_abandoned_stream_frees_its_place(engine: EngineGenerator) -> None:
    stream = engine.stream(request_of(engine, "river", max_new_tokens=80, min_new_tokens=80))
    next(stream)
    stream.close()
    wait_for(lambda: not core(engine).has_work)


@pytest.mark.parametrize("parameters", [{"num_beams": 2}, {"logprobs": 1}, {"do_sample": True, "num_generations": 2}])
def test_what_cannot_be_streamed_is_refused_at_once(engine: EngineGenerator, parameters: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="cannot be streamed"):
        engine.stream(request_of(engine, "river", **parameters))


def test_a_seed_gives_the_same_text_alone_and_in_any_company(engine: EngineGenerator) -> None:
    draw = random.Random(0)
    seeded = request_of(engine, "river", max_new_tokens=16, do_sample=True, seed=11, num_return_sequences=3)
    (alone,) = engine.generate([seeded], batch_size=1)
    for _ in range(5):
        others = [
            request_of(engine, " ".join(draw.choices(WORDS, k=draw.randint(1, 6))), max_new_tokens=draw.randint(1, 20),
                       do_sample=True, temperature=draw.uniform(0.5, 2.0))
            for _ in range(9)
        ]  # fmt: skip
        place = draw.randrange(10)
        outputs = engine.generate([*others[:place], seeded, *others[place:]], batch_size=draw.randint(2, 10))
        assert outputs[place].sequences == alone.sequences
    assert len({each.text for each in alone.sequences}) > 1


def test_tasks_that_are_cancelled_leave_the_others_alone(engine: EngineGenerator) -> None:
    requests = [request_of(engine, word, max_new_tokens=20) for word in WORDS[:16]]
    expected = engine.generate(requests, batch_size=4)

    async def every_other() -> list[Any]:
        tasks = [asyncio.create_task(engine.generate_async(request)) for request in requests]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(every_other())
    assert found[1::2] == expected[1::2]
    assert all(isinstance(each, asyncio.CancelledError) or each in expected for each in found[::2])
    wait_for(lambda: not core(engine).has_work)


def test_asynchronous_streams_give_the_same_pieces(engine: EngineGenerator) -> None:
    request = request_of(engine, "miller", max_new_tokens=12)

    async def pieces() -> str:
        return "".join([piece async for piece in engine.stream_async(request)])

    assert asyncio.run(pieces()) == engine.generate([request], batch_size=1)[0].text


def test_max_time_ends_with_what_there_is(engine: EngineGenerator) -> None:
    slow = request_of(engine, "river", max_new_tokens=60, min_new_tokens=60, max_time=1e-4)
    (output,) = engine.generate([slow], batch_size=1)
    assert output.sequences[0].finish_reason == "time"
    assert len(output.sequences[0].token_ids) < 60


def test_equal_heads_are_computed_once() -> None:
    engine = make_engine_generator(make_generator("gpt2"))
    head = " ".join(WORDS[:36])
    first, second = (request_of(engine, f"{head} {end}", max_new_tokens=4) for end in ("cat", "dog"))
    fresh = make_engine_generator(make_generator("gpt2"))
    engine.generate([first], batch_size=1)
    assert engine.generate([second], batch_size=1) == fresh.generate([second], batch_size=1)
    matched = core(engine)._scheduler.num_matched_tokens
    assert matched >= 32
    assert matched % 16 == 0


class Breaking:
    """A runner that fails at every third step."""

    def __init__(self, runner: Any) -> None:
        self._runner, self._steps = runner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, batch: StepBatch) -> torch.Tensor:
        self._steps += 1
        if self._steps == 3:
            raise RuntimeError("no memory left")
        result: torch.Tensor = self._runner.run(batch)
        return result


def test_a_failure_reaches_its_requests_and_nobody_later(engine: EngineGenerator) -> None:
    request = request_of(engine, "river", max_new_tokens=8, min_new_tokens=8)
    expected = engine.generate([request], batch_size=1)
    whole = core(engine).runner
    core(engine).runner = Breaking(whole)  # type: ignore[assignment]
    try:
        with pytest.raises(EngineError, match="RuntimeError: no memory left"):
            engine.generate([request, request], batch_size=2)
    finally:
        core(engine).runner = whole
    assert engine.generate([request], batch_size=1) == expected


def make_adapted(family: str, seed: int, folder: Path) -> TransformersGenerator:
    """The family's model with a random adapter, which is saved."""
    own = make_generator(family)
    torch.manual_seed(seed)
    model = attach_lora(own.model, LoraConfig(r=4 * (seed + 1)), family_of(own.model.config))
    for parameter in (each for each in model.parameters() if each.requires_grad):
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    return TransformersGenerator(model, own.tokenizer, seq2seq=family == "t5")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "t5"])
def test_adapters_and_the_base_share_a_batch(family: str, tmp_path: Path) -> None:
    base = make_generator(family)
    engine = make_engine_generator(make_generator(family), EngineOptions(max_sequences=6, max_adapters=2, debug=True))
    draw = random.Random(3)
    requests = [request_of(engine, " ".join(draw.choices(WORDS, k=3)), max_new_tokens=10, num_beams=draw.choice([1, 2]))
                for _ in range(6)]  # fmt: skip
    expected = {None: base.generate(requests, batch_size=1)}
    for seed, name in enumerate(["one", "two"]):
        adapted = make_adapted(family, seed, tmp_path / name)
        core(engine).load_adapter(name, tmp_path / name)
        expected[name] = adapted.generate(requests, batch_size=1)
    assert len({str(outputs) for outputs in expected.values()}) == 3

    async def all_at_once() -> list[Any]:
        sides = [EngineGenerator(engine.service, engine.resolver, Addressing(adapter=name)) for name in expected]
        return await asyncio.gather(*(side.generate_async(each) for side in sides for each in requests))

    found = asyncio.run(all_at_once())
    for ours, theirs in zip(found, [each for outputs in expected.values() for each in outputs], strict=True):
        assert [each.token_ids for each in ours.sequences] == [each.token_ids for each in theirs.sequences]
    wait_for(lambda: not core(engine).has_work)
    core(engine).evict_adapter("two")
    for unknown in ("two", "three"):
        gone = EngineGenerator(engine.service, engine.resolver, Addressing(adapter=unknown))
        with pytest.raises(RequestError, match=unknown):
            gone.generate(requests, batch_size=1)


def test_more_adapters_than_places_take_turns(tmp_path: Path) -> None:
    options = EngineOptions(max_sequences=3, max_adapters=1, debug=True)
    engine = make_engine_generator(make_generator("llama"), options)
    names, draw = ("one", "two", "three"), random.Random(5)
    requests = [request_of(engine, " ".join(draw.choices(WORDS, k=3)), max_new_tokens=8) for _ in range(4)]
    for seed, name in enumerate(names):
        make_adapted("llama", seed, tmp_path / name)
        core(engine).load_adapter(name, tmp_path / name)
    sides = {
        name: EngineGenerator(engine.service, engine.resolver, Addressing(adapter=name)) for name in (*names, None)
    }
    alone = {name: [side.generate([each], batch_size=1)[0] for each in requests] for name, side in sides.items()}
    assert len({str(outputs) for outputs in alone.values()}) == 4

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(side.generate_async(each) for each in requests for side in sides.values()))

    found = asyncio.run(all_at_once())
    wanted = [alone[name][place] for place in range(len(requests)) for name in sides]
    for ours, theirs in zip(found, wanted, strict=True):
        assert [each.token_ids for each in ours.sequences] == [each.token_ids for each in theirs.sequences]


def test_an_adapter_that_cannot_be_read_again_fails_its_own_requests_only(tmp_path: Path) -> None:
    engine = make_engine_generator(make_generator("llama"), EngineOptions(max_adapters=1, debug=True))
    for seed, name in enumerate(("gone", "here")):
        make_adapted("llama", seed, tmp_path / name)
        core(engine).load_adapter(name, tmp_path / name)
    (tmp_path / "gone" / "adapter_config.json").unlink()
    gone, here = (
        EngineGenerator(engine.service, engine.resolver, Addressing(adapter=name)) for name in ("gone", "here")
    )
    request = request_of(engine, "river", max_new_tokens=4)
    expected = here.generate([request], batch_size=1)
    with pytest.raises(ModelError, match="holds no adapter"):
        gone.generate([request], batch_size=1)
    assert here.generate([request], batch_size=1) == expected
    wait_for(lambda: not core(engine).has_work)
