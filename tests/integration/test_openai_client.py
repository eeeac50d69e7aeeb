"""OpenAI's own client, and ours, against a real server over a real model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
import torch

from rayloom.data import PromptInput
from rayloom.errors import RequestError, ServiceError
from rayloom.generation import TextGenerator
from rayloom.generation.endpoint import Endpoint
from rayloom.generation.remote import RemoteTextGenerator
from rayloom.serving.model import TextGeneratorModel
from tests.integration.local_server import LIMITS, listening

PROMPT = "The river flows slowly past"
QUESTIONS = ["What is a kestrel?", "Who built the mill?", "Why?"]


@pytest.fixture(scope="module")
def causal(tiny_artifact_llama: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_llama, max_batch_size=8)


@pytest.fixture(scope="module")
def seq2seq(tiny_artifact_t5: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_t5, max_batch_size=8)


@pytest.fixture(scope="module")
def url(causal: TextGenerator) -> Iterator[str]:
    with listening(TextGeneratorModel(causal, max_time_s=60.0)) as found:
        yield found


@pytest.fixture(scope="module")
def t5_url(seq2seq: TextGenerator) -> Iterator[str]:
    with listening(TextGeneratorModel(seq2seq, max_time_s=60.0)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def plain_text(generator: TextGenerator, ids: list[int]) -> str:
    text: str = generator.encoder.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def test_models(client: openai.OpenAI, causal: TextGenerator) -> None:
    (model,) = client.models.list()
    assert model.id == causal.name
    assert client.models.retrieve(causal.name) == model
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")


def test_completions_go_to_the_model_raw(client: openai.OpenAI, causal: TextGenerator) -> None:
    tokenizer = causal.encoder.tokenizer
    ids = tokenizer.encode(PROMPT)
    expected = causal.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    found = client.completions.create(model=causal.name, prompt=PROMPT, max_tokens=8, temperature=0)
    assert found.choices[0].text == plain_text(causal, expected)
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(ids)
    assert found.system_fingerprint
    by_ids = client.completions.create(model=causal.name, prompt=ids, max_tokens=8, temperature=0)
    assert by_ids.choices[0].text == found.choices[0].text
    both = client.completions.create(model=causal.name, prompt=[ids, ids[:3]], max_tokens=8, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == found.choices[0].text
    assert both.usage is not None
    assert both.usage.prompt_tokens == len(ids) + 3


@pytest.mark.parametrize(
    "more", [{}, {"n": 3, "seed": 4, "temperature": 0.9}, {"stop": ["e", "th"]}, {"logprobs": 2}], ids=str
)
def test_streams_are_the_whole_answers(client: openai.OpenAI, causal: TextGenerator, more: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": causal.name, "prompt": PROMPT, "max_tokens": 16, **more}
    whole = client.completions.create(**asked)
    texts: dict[int, str] = dict.fromkeys(range(len(whole.choices)), "")
    tokens: list[str] = []
    usage = None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens += choice.logprobs.tokens if choice.logprobs else []
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert usage == whole.usage
    if "logprobs" in more:
        assert whole.choices[0].logprobs is not None
        assert tokens == whole.choices[0].logprobs.tokens


def test_echo_gives_the_log_likelihood_of_a_prompt(client: openai.OpenAI, causal: TextGenerator) -> None:
    ids = causal.encoder.tokenizer.encode(PROMPT)
    with torch.no_grad():
        logits = causal.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logits[place, token]) for place, token in enumerate(ids[1:])]
    for max_tokens in (0, 1):
        (choice,) = client.completions.create(
            model=causal.name, prompt=PROMPT, max_tokens=max_tokens, temperature=0, echo=True, logprobs=2
        ).choices
        assert choice.text.startswith(PROMPT)
        assert choice.logprobs is not None
        told, offsets = choice.logprobs.token_logprobs, choice.logprobs.text_offset
        assert told is not None
        assert offsets is not None
        assert len(told) == len(ids) + max_tokens  # an end of sequence counts: harnesses cut the last one off
        assert told[0] is None
        assert told[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        pieces = zip(choice.logprobs.tokens or [], offsets, strict=True)
        assert all(choice.text.startswith(piece, at) for piece, at in pieces if not piece.startswith(("bytes:", "<")))


def test_best_of_returns_the_likeliest(client: openai.OpenAI, causal: TextGenerator) -> None:
    asked: dict[str, Any] = {"model": causal.name, "prompt": PROMPT, "max_tokens": 6, "seed": 2, "temperature": 1.0}
    every = client.completions.create(**asked, n=5, logprobs=0)

    def mean(choice: Any) -> float:
        return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    best = client.completions.create(**asked, best_of=5)
    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage == every.usage


def test_chat_fills_the_models_own_template(client: openai.OpenAI, causal: TextGenerator) -> None:
    asked: dict[str, Any] = {
        "model": causal.name,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        "max_completion_tokens": 8,
        "temperature": 0,
    }
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    assert found.choices[0].message.content == causal.generate(QUESTIONS[0], max_new_tokens=8, do_sample=False)
    assert found.choices[0].logprobs is not None
    tokens = found.choices[0].logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace").lstrip() == (
        found.choices[0].message.content.lstrip()
    )
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    streamed = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == found.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(
            model=causal.name, messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        )


def test_json_that_follows_a_schema(client: openai.OpenAI, causal: TextGenerator) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"],
              "additionalProperties": False}  # fmt: skip
    found = client.chat.completions.create(
        model=causal.name,
        messages=[{"role": "user", "content": "How old?"}],
        max_tokens=24,
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
    )
    assert isinstance(json.loads(found.choices[0].message.content or "")["age"], int)


class Person(pydantic.BaseModel):
    name: str


def test_json_that_takes_its_last_token_is_parsed(client: openai.OpenAI, causal: TextGenerator) -> None:
    """OpenAI's `parse` raises where an answer was cut."""
    num_full = 0
    for most in (24, 28, 32):
        found = client.chat.completions.parse(
            model=causal.name,
            messages=[{"role": "user", "content": "Who?"}],
            max_completion_tokens=most,
            response_format=Person,
        )
        assert isinstance(found.choices[0].message.parsed, Person)
        assert found.choices[0].finish_reason == "stop"
        assert found.usage is not None
        num_full += found.usage.completion_tokens == most
    assert num_full > 0


def test_extensions_and_biases(client: openai.OpenAI, causal: TextGenerator) -> None:
    asked: dict[str, Any] = {"model": causal.name, "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    beams = client.completions.create(**asked, extra_body={"num_beams": 3, "repetition_penalty": 1.3})
    plain = client.completions.create(**asked, logprobs=0)
    assert beams.choices[0].text != plain.choices[0].text
    ids = causal.encoder.tokenizer.encode(PROMPT)
    first = int(causal.model.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)[0, -1])
    other = client.completions.create(**asked, logit_bias={str(first): -100})
    assert other.choices[0].text != plain.choices[0].text
    with pytest.raises(openai.BadRequestError, match="unknown field 'num_beam'; did you mean 'num_beams'"):
        client.completions.create(**asked, extra_body={"num_beam": 3})


def test_tokens_that_the_model_does_not_have_break_nothing(client: openai.OpenAI, causal: TextGenerator) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt has token 999999"):
        client.completions.create(model=causal.name, prompt=[1, 999999], max_tokens=2)
    assert client.completions.create(model=causal.name, prompt=[1, 5], max_tokens=2).choices


def test_asynchronous_clients_side_by_side(url: str, causal: TextGenerator) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

            async def streamed(question: str) -> str:
                stream = await client.chat.completions.create(
                    model=causal.name, messages=[{"role": "user", "content": question}], stream=True, temperature=0
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(streamed(question) for question in QUESTIONS * 3))

    assert asyncio.run(ask_all()) == [causal.generate(question) for question in QUESTIONS * 3]


class Gated:
    """A runner that computes some steps, and then waits before each until it may go on."""

    def __init__(self, generator: TextGenerator, num_free: int) -> None:
        self.service: Any = generator.generator.service
        self.engine: Any = self.service._engine
        self.inner, self.num_free, self.num_steps, self.open = self.engine.runner, num_free, 0, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, batch: Any) -> Any:
        self.num_steps += 1
        if self.num_steps > self.num_free:
            assert self.open.wait(30.0)
        return self.inner.run(batch)

    def __enter__(self) -> Gated:
        self.engine.runner = self
        return self

    def __exit__(self, *error: object) -> None:
        self.open.set()
        wait_for(lambda: not self.engine.has_work)
        self.engine.runner = self.inner

    def is_free_after_one_step(self) -> bool:
        """Whether the one request, given up by its client, leaves with the step that is being computed."""
        wait_for(lambda: self.num_steps > self.num_free and bool(self.service._leavers))
        assert len(self.engine._groups) == 1
        num_steps = self.num_steps
        self.open.set()
        wait_for(lambda: not self.engine.has_work)
        return self.num_steps == num_steps


LONG = {"prompt": PROMPT, "min_new_tokens": 60, "max_tokens": 60, "n": 4}


def test_a_client_that_leaves_a_stream_frees_its_place(url: str, causal: TextGenerator) -> None:
    with Gated(causal, 1) as gate:
        with httpx.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()  # httpx closes the response with its iterator
            assert next(lines).startswith("data: ")
            wait_for(lambda: gate.num_steps > gate.num_free)
        assert gate.is_free_after_one_step()


def test_a_client_that_does_not_wait_frees_its_place(url: str, causal: TextGenerator) -> None:
    with Gated(causal, 0) as gate:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=LONG, timeout=httpx.Timeout(10.0, read=0.5))
        assert gate.is_free_after_one_step()


@pytest.mark.parametrize(("stream", "num_free"), [(False, 1), (True, 1), (True, 0)])
def test_a_deadline_frees_its_place(url: str, causal: TextGenerator, stream: bool, num_free: int) -> None:
    with Gated(causal, num_free) as gate:
        late = httpx.post(f"{url}/v1/completions", json=LONG | {"stream": stream}, headers={"X-Request-Timeout": "1"})
        assert gate.is_free_after_one_step()
    if stream and num_free:  # it has begun: the status is out
        *_, last, end = late.text.split("\n\n")
        assert (late.status_code, end) == (200, "")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    else:
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")


def test_t5(t5_url: str, seq2seq: TextGenerator) -> None:
    with openai.OpenAI(base_url=f"{t5_url}/v1", api_key="none") as client:
        ids = seq2seq.encoder.tokenizer.encode(PROMPT)
        expected = seq2seq.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, 1:].tolist()
        found = client.completions.create(model=seq2seq.name, prompt=PROMPT, max_tokens=8, temperature=0)
        assert found.choices[0].text == plain_text(seq2seq, expected)
        chat = client.chat.completions.create(
            model=seq2seq.name, messages=[{"role": "user", "content": QUESTIONS[1]}], temperature=0
        )
        assert chat.choices[0].message.content == seq2seq.generate(QUESTIONS[1])
        with pytest.raises(openai.BadRequestError, match="no log-probabilities of its prompt"):
            client.completions.create(model=seq2seq.name, prompt=PROMPT, echo=True, logprobs=1, max_tokens=0)
        beams = client.completions.create(model=seq2seq.name, prompt=PROMPT, stream=True, extra_body={"num_beams": 2})
        assert "".join(choice.text for chunk in beams for choice in chunk.choices)


def test_tokenize(url: str, causal: TextGenerator) -> None:
    ids = causal.encoder.tokenizer.encode(PROMPT)
    found = httpx.post(f"{url}/tokenize", json={"prompt": PROMPT}).json()
    assert (found["tokens"], found["count"]) == (ids, len(ids))
    assert PROMPT in httpx.post(f"{url}/detokenize", json={"tokens": ids}).json()["prompt"]
    messages = [{"role": "user", "content": "Why?"}]
    asked = httpx.post(f"{url}/tokenize", json={"messages": messages}).json()["tokens"]
    assert asked == causal.encoder.prompt_ids(PromptInput("Why?"))


@pytest.fixture
def remote(url: str) -> Iterator[RemoteTextGenerator]:
    generator = TextGenerator(endpoint=url)
    assert isinstance(generator, RemoteTextGenerator)
    yield generator
    generator.close()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"max_new_tokens": 4, "num_beams": 2},
        {"do_sample": True, "seed": 3, "num_generations": 2},
        {"logprobs": 2, "prefix": "The"},
        {"stop_strings": ["e"]},
    ],
    ids=str,
)
def test_our_own_client_writes_what_a_local_model_writes(
    remote: RemoteTextGenerator, causal: TextGenerator, params: dict[str, Any]
) -> None:
    context = "The old mill."
    assert remote.generate(QUESTIONS[0], context=context, **params) == causal.generate(
        QUESTIONS[0], context=context, **params
    )
    assert remote.generate_batch(QUESTIONS, batch_size=2, **params) == causal.generate_batch(QUESTIONS, **params)
    inputs = [PromptInput(question) for question in QUESTIONS]
    ours, theirs = remote.run(inputs, params), causal.run(inputs, params)
    for mine, local in zip(ours, theirs, strict=True):
        assert mine.prompt_ids == local.prompt_ids
        assert [each.token_ids for each in mine.sequences] == [each.token_ids for each in local.sequences]
        assert [each.score for each in mine.sequences] == pytest.approx([each.score for each in local.sequences])
    assert asyncio.run(remote.run_async(inputs[0], params)).text == ours[0].text
    if "num_generations" not in params:
        assert "".join(remote.stream(QUESTIONS[0], **params)) == remote.generate(QUESTIONS[0], **params)


def test_our_own_client_says_what_is_wrong(remote: RemoteTextGenerator) -> None:
    with pytest.raises(RequestError, match="top_k only matters when sampling"):
        remote.generate("x", top_k=3)
    with pytest.raises(RequestError, match="unknown generation parameter 'num_beam'"):
        remote.generate("x", num_beam=3)
    with pytest.raises(RequestError, match="max_length 1 leaves no room"):
        remote.stream(PROMPT, max_length=1)
    with pytest.raises(RequestError, match="a remote model has no encoder"):
        remote.encoder  # noqa: B018
    with pytest.raises(RequestError, match="precision is the server's own"):
        TextGenerator(endpoint="http://127.0.0.1:1", precision="int8")


def test_an_abandoned_stream_of_our_own_client_frees_its_place(
    remote: RemoteTextGenerator, causal: TextGenerator
) -> None:
    engine: Any = causal.generator.service._engine
    stream = remote.stream(PROMPT, max_new_tokens=80, min_new_tokens=80)
    assert next(stream)
    del stream
    wait_for(lambda: not engine.has_work)


def test_nobody_there() -> None:
    endpoint = Endpoint("http://127.0.0.1:9", max_tries=2)
    with pytest.raises(ServiceError, match="cannot be reached"):
        endpoint.post("/generate", {})
    endpoint.close()


def test_a_queue_that_is_full_is_waited_for(causal: TextGenerator) -> None:
    limits = dataclasses.replace(LIMITS, max_in_flight=2)
    with listening(TextGeneratorModel(causal, max_time_s=60.0), limits) as url:
        generator = TextGenerator(endpoint=url)
        assert isinstance(generator, RemoteTextGenerator)
        texts = QUESTIONS * 2
        assert generator.generate_batch(texts, batch_size=6, max_new_tokens=2) == causal.generate_batch(
            texts, max_new_tokens=2
        )
        generator.close()
