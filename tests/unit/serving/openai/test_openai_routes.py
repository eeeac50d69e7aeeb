"""OpenAI's routes over a fake model: shapes, parameters, streams, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from rayloom.serving.calls import Problem
from rayloom.serving.limits import Limits
from rayloom.serving.openai.requests import CompletionRequest
from rayloom.serving.openai.responses import ChatBody, ChatChunk, CompletionBody, ErrorBody, ModelList
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4, max_prompts=3)
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[TestClient, FakeBackend]]:
    backend = FakeBackend()
    with TestClient(create_app(backend, LIMITS), raise_server_exceptions=False) as client:
        yield client, backend


@pytest.fixture
def backend(served: tuple[TestClient, FakeBackend]) -> FakeBackend:
    vars(served[1]).update(vars(FakeBackend()))
    return served[1]


@pytest.fixture
def client(served: tuple[TestClient, FakeBackend], backend: FakeBackend) -> TestClient:
    return served[0]


def said(content: str = "one two three") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def error_of(response: httpx.Response) -> dict[str, Any]:
    ErrorBody.model_validate(response.json())
    error: dict[str, Any] = response.json()["error"]
    return error


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """A whole stream's chunks without its `[DONE]`."""
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_completion(client: TestClient) -> None:
    body = client.post(TEXT, json={"model": "fake-qa", "prompt": "one two three", "max_tokens": 2}).json()
    CompletionBody.model_validate(body)
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert (body["model"], body["system_fingerprint"]) == ("fake-qa", "fp_fake")
    assert body["choices"] == [{"index": 0, "text": "ONE TWO", "logprobs": None, "finish_reason": "length"}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_chat_completion(client: TestClient, backend: FakeBackend) -> None:
    messages = [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "brief"}]},
    ]
    body = client.post(CHAT, json={"model": "fake-qa", "messages": messages}).json()
    ChatBody.model_validate(body)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "BE BRIEF", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert backend.model_.calls[0].prompt.messages == (
        {"role": "system", "content": "be"},
        {"role": "user", "content": "brief"},
    )


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["a", "b c"], ["A", "B C"]),
        ([7, 8], ["W7 W8"]),
        ([[7], [8, 9]], ["W7", "W8 W9"]),
    ],
    ids=str,
)
def test_prompts_of_all_kinds(client: TestClient, backend: FakeBackend, prompt: Any, texts: list[str]) -> None:
    body = client.post(TEXT, json={"prompt": prompt}).json()
    assert [choice["text"] for choice in body["choices"]] == texts
    assert [choice["index"] for choice in body["choices"]] == list(range(len(texts)))
    assert all(call.prompt.raw or call.prompt.token_ids is not None for call in backend.model_.calls)


def test_several_answers_to_several_prompts_are_numbered_prompt_by_prompt(client: TestClient) -> None:
    body = client.post(TEXT, json={"prompt": ["a", "b"], "n": 2}).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "A"), (1, "A"), (2, "B"), (3, "B")]
    chunks = chunks_of(client.post(TEXT, json={"prompt": ["a", "b"], "n": 2, "stream": True}))
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "A", 1: "A", 2: "B", 3: "B"}


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "do_sample": True}),
        ({"temperature": 0, "top_p": 0.9, "top_k": 3}, {"do_sample": False}),
        ({"top_p": 0.5}, {"top_p": 0.5, "do_sample": True}),
        ({"n": 2}, {"num_return_sequences": 2, "do_sample": True}),
        ({"n": 2, "num_beams": 4}, {"num_return_sequences": 2, "num_beams": 4}),
        ({"stop": "\n"}, {"stop_strings": ["\n"]}),
        ({"stop": ["a", "b"]}, {"stop_strings": ["a", "b"]}),
        ({"seed": 3, "user": "me"}, {"seed": 3}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"logit_bias": {"5": -100}}, {"logit_bias": {"5": -100.0}}),
        ({"repetition_penalty": 1.2, "num_beams": 2}, {"repetition_penalty": 1.2, "num_beams": 2}),
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "temperature": None}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_parameters_by_our_names(
    client: TestClient, backend: FakeBackend, path: str, given: dict[str, Any], parameters: dict[str, Any]
) -> None:
    asked = {"prompt": "a"} if path == TEXT else {"messages": said("a")}
    assert client.post(path, json=asked | given).status_code == 200
    assert backend.model_.calls[-1].parameters == {"num_return_sequences": 1} | parameters


def test_parameters_of_one_route_only(client: TestClient, backend: FakeBackend) -> None:
    client.post(CHAT, json={"messages": said("a"), "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2})
    assert backend.model_.calls[-1].parameters == {"num_return_sequences": 1, "max_new_tokens": 4, "logprobs": 2}
    client.post(CHAT, json={"messages": said("a"), "logprobs": False, "top_logprobs": 0})
    assert backend.model_.calls[-1].parameters == {"num_return_sequences": 1}
    client.post(TEXT, json={"prompt": "a", "best_of": 3, "n": 2})
    assert (backend.model_.calls[-1].best_of, backend.model_.calls[-1].parameters["do_sample"]) == (3, True)
    for form, schema in (
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}, "strict": True}},
         {"type": "array"}),
    ):  # fmt: skip
        client.post(CHAT, json={"messages": said("a"), "response_format": form})
        assert backend.model_.calls[-1].parameters.get("json_schema") == schema


def test_logprobs_of_completions(client: TestClient) -> None:
    body = client.post(TEXT, json={"prompt": "one two", "logprobs": 2}).json()
    CompletionBody.model_validate(body)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["ONE", "TWO", "</s>"],
        "token_logprobs": [-0.5, -1.0, -0.5],
        "top_logprobs": [
            {"likely": -0.25, "ONE": -0.5},
            {"likely": -0.25, "TWO": -1.0},
            {"likely": -0.25, "</s>": -0.5},
        ],
        "text_offset": [0, 4, 7],
    }


def test_echo_with_logprobs_scores_the_prompt(client: TestClient) -> None:
    asked = {"prompt": "one two", "logprobs": 1, "echo": True}
    (choice,) = client.post(TEXT, json=asked | {"max_tokens": 1}).json()["choices"]
    assert choice["text"] == "one twoONE"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["one", "two", "ONE"]
    assert logprobs["token_logprobs"] == [None, -1.0, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 4, 7]
    body = client.post(TEXT, json=asked | {"max_tokens": 0}).json()
    CompletionBody.model_validate(body)
    assert body["choices"][0]["text"] == "one two"
    assert body["choices"][0]["logprobs"]["tokens"] == ["one", "two"]
    assert body["usage"]["completion_tokens"] == 0


def test_logprobs_of_chat(client: TestClient) -> None:
    asked = {"messages": said("one two"), "logprobs": True, "top_logprobs": 2}
    body = client.post(CHAT, json=asked).json()
    ChatBody.model_validate(body)
    content = body["choices"][0]["logprobs"]["content"]
    assert [(each["token"], each["logprob"]) for each in content] == [("ONE", -0.5), ("TWO", -1.0)]
    assert content[0]["bytes"] == [79, 78, 69]
    assert content[0]["top_logprobs"][0] == {"token": "likely", "logprob": -0.25, "bytes": list(b"likely")}
    streamed = [
        token
        for chunk in chunks_of(client.post(CHAT, json=asked | {"stream": True}))
        for choice in chunk["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": 1}, {"echo": True}, {"echo": True, "logprobs": 1}, {"n": 2}], ids=str
)
def test_streamed_completions_are_the_whole_ones(client: TestClient, more: dict[str, Any]) -> None:
    asked = {"prompt": ["one two three", "four"], **more}
    whole = client.post(TEXT, json=asked).json()
    chunks = chunks_of(client.post(TEXT, json=asked | {"stream": True, "stream_options": {"include_usage": True}}))
    *parts, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    for expected in whole["choices"]:
        mine = [choice for chunk in parts for choice in chunk["choices"] if choice["index"] == expected["index"]]
        assert all(chunk["usage"] is None for chunk in parts)
        assert "".join(choice["text"] for choice in mine) == expected["text"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == [expected["finish_reason"]]
        if expected["logprobs"] is not None:
            told = [choice["logprobs"] for choice in mine]
            for name, values in expected["logprobs"].items():
                assert [value for each in told for value in each[name]] == values
    for chunk in chunks:
        CompletionBody.model_validate(chunk)


def test_an_answer_goes_on_in_the_next_request_as_it_came(client: TestClient, backend: FakeBackend) -> None:
    answer = client.post(CHAT, json={"messages": said()}).json()["choices"][0]["message"]
    turns = [*said(), answer | {"tool_calls": None}, *said("and more")]  # clients add what they know of, and is null
    assert client.post(CHAT, json={"messages": turns}).status_code == 200
    assert backend.model_.calls[-1].prompt.messages == (
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "ONE TWO THREE"},
        {"role": "user", "content": "and more"},
    )


def test_what_is_large_is_refused_before_it_costs_much(client: TestClient) -> None:
    many = {f"k{number}": 1 for number in range(256)}
    for body in (
        {"messages": [said()[0] | many]},
        {"messages": said(), "response_format": {"type": "text"} | many},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"} | many]}]},
    ):
        assert "fields; at most 256 make sense" in error_of(client.post(CHAT, json=body))["message"]
    assert "at most 10000 items" in error_of(client.post(CHAT, json={"messages": said() * 10_001}))["message"]
    ids = [
        1
    ] * 100_000  # none of which is held against the kinds that the prompt is not: that took seconds and a gigabyte
    assert CompletionRequest.model_validate({"prompt": ids}).prompt is ids
    response = client.post(TEXT, json={"prompt": ids})
    assert (response.status_code, error_of(response)["code"]) == (413, "context_length_exceeded")


def test_streamed_chat(client: TestClient) -> None:
    chunks = chunks_of(client.post(CHAT, json={"messages": said(), "stream": True, "n": 2}))
    for chunk in chunks:
        ChatChunk.model_validate(chunk)
        assert "usage" not in chunk
    for index in range(2):
        first, *rest = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in rest) == "ONE TWO THREE"
        assert rest[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "param"),
    [
        (TEXT, {"prompt": "x", "tools": []}, 400, "unknown field 'tools'", "tools"),
        (TEXT, {"prompt": "x", "max_token": 1}, 400, "did you mean 'max_tokens'", "max_token"),
        (TEXT, {}, 400, "'prompt' is required", "prompt"),
        (TEXT, {"prompt": []}, 400, "a text, a list of texts", "prompt"),
        (TEXT, {"prompt": ["a", 1]}, 400, "a text, a list of texts", "prompt"),
        (TEXT, {"prompt": 5}, 400, "a text, a list of texts", "prompt"),
        (TEXT, {"prompt": [[1], ["a"]]}, 400, "a text, a list of texts", "prompt"),
        (TEXT, {"prompt": ["a"] * 4}, 400, "4 prompts are too many", "prompt"),
        (TEXT, {"prompt": "x" * 51}, 413, "51 characters are too many", None),
        (TEXT, {"prompt": [1] * 51}, 413, "51 tokens are too many", None),
        (TEXT, {"prompt": "x", "suffix": "y"}, 400, "suffix is not available", None),
        (TEXT, {"prompt": "x", "best_of": 1, "n": 2}, 400, "best_of 1 is less than n 2", None),
        (TEXT, {"prompt": "x", "best_of": 2, "stream": True}, 400, "best_of cannot be streamed", None),
        (TEXT, {"prompt": "x", "best_of": 5}, 400, "best_of 5 is too many", "best_of"),
        (TEXT, {"prompt": "x", "n": 5}, 400, "num_return_sequences 5 is too many", "num_return_sequences"),
        (TEXT, {"prompt": "x", "stop": ["a"] * 17}, 400, "stop", "stop"),
        (TEXT, {"prompt": "x", "logprobs": 21}, 400, "logprobs: input should be less", "logprobs"),
        (TEXT, {"prompt": "x", "logit_bias": {"5": 101}}, 400, "logit_bias", "logit_bias"),
        (TEXT, {"prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias", "logit_bias"),
        (TEXT, {"prompt": "x", "frequency_penalty": 0.5}, 400, "frequency_penalty", "frequency_penalty"),
        (TEXT, {"prompt": "x", "max_tokens": 3, "max_new_tokens": 4}, 400, "are the same parameter", None),
        (TEXT, {"prompt": "x", "stop": "a", "stop_strings": ["b"]}, 400, "are the same parameter", None),
        (TEXT, {"prompt": "x", "temperature": 0, "do_sample": True}, 400, "temperature 0", None),
        (TEXT, {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options needs stream", None),
        (TEXT, {"prompt": "x", "model": "gpt-4"}, 404, "the model 'gpt-4' does not exist", "model"),
        (TEXT, {"prompt": "bad"}, 400, "the prompt is bad", None),
        (CHAT, {"messages": []}, 400, "messages", "messages"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "x"}]}]}, 400,
         "messages.0.content.0.type: input should be 'text'", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400,
         "'messages.0.content.0.text' is required", "messages"),
        (CHAT, {"messages": [said()[0] | {"name": "a"}]}, 400, "unknown field 'messages.0.name'", "messages"),
        (CHAT, {"messages": said(), "top_logprobs": 1}, 400, "top_logprobs needs logprobs", None),
        (CHAT, {"messages": said(), "logprobs": 1}, 400, "logprobs: input should be a valid boolean", "logprobs"),
        (CHAT, {"messages": said(), "max_tokens": 1, "max_completion_tokens": 2}, 400, "same parameter", None),
        (CHAT, {"messages": said(), "response_format": {"type": "json_schema"}}, 400, "go together", None),
        (CHAT, {"messages": said("x" * 51)}, 413, "51 characters are too many", None),
    ],
)  # fmt: skip
def test_mistakes_in_openais_shape(
    client: TestClient, path: str, body: Any, status: int, message: str, param: str | None
) -> None:
    response = client.post(path, json=body)
    error = error_of(response)
    assert (response.status_code, error["type"]) == (status, "invalid_request_error"), error
    assert message in error["message"]
    assert error["param"] == param


def test_other_errors_have_that_shape_too(client: TestClient, backend: FakeBackend) -> None:
    assert error_of(client.get("/v1/nothing"))["code"] == "unknown_url"
    assert error_of(client.get(TEXT))["code"] == "method_not_supported"
    broken = client.post(TEXT, content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, error_of(broken)["param"]) == (400, None)
    failed = client.post(TEXT, json={"prompt": "crash"})
    assert (failed.status_code, error_of(failed)["type"]) == (500, "server_error")
    backend.outcome = Problem(429, "overloaded", "too many", retry_after_s=3)
    for stream in (False, True):
        busy = client.post(CHAT, json={"messages": said(), "stream": stream})
        assert (busy.status_code, error_of(busy)["type"]) == (429, "rate_limit_error")
        assert busy.headers["retry-after"] == "3"


def test_models(client: TestClient, backend: FakeBackend) -> None:
    listed = client.get("/v1/models").json()
    ModelList.model_validate(listed)
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["created"]) == ("fake-qa", "model", 7)
    assert client.get("/v1/models/fake-qa").json() == model
    missing = client.get("/v1/models/some/other")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "model_not_found")
    backend.outcome = Problem(503, "not_ready", "no replica")
    assert client.get("/v1/models").status_code == 503


def test_a_document_that_describes_it_all(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/models", "/v1/models/{model}", TEXT, CHAT, "/generate", "/answer", "/tokenize", "/ready"} <= set(
        document["paths"]
    )
    content = document["paths"][TEXT]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    kinds = document["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    assert [kind.get("items", {}).get("type") for kind in kinds] == [None, "string", "integer", "array"]
