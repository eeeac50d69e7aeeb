from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from rayloom.config import GenerationConfig
from rayloom.serving.calls import Health, ModelInfo, Problem, TextCall, Tokens
from rayloom.serving.limits import Limits
from rayloom.serving.routes import create_app
from tests.fakes_serving import PLAIN_MODEL, FakeBackend, FakeModel

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)


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


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    return response.status_code, body["error"]["type"], body["error"]["message"]


def test_generate_answers_with_text_usage_and_reason(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": "one two three", "max_new_tokens": 2})
    assert response.status_code == 200
    assert response.json() == {
        "text": "ONE TWO",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "model": "fake-qa",
    }


def test_answer_passes_the_context(client: TestClient) -> None:
    response = client.post("/answer", json={"question": "capital?", "context": "paris"})
    assert response.json()["answer"] == "PARIS CAPITAL?"
    assert response.json()["finish_reason"] == "stop"


def test_several_texts_and_logprobs(client: TestClient) -> None:
    body = client.post("/generate", json={"prompt": "a b", "num_generations": 3, "logprobs": 0}).json()
    assert body["texts"] == ["A B"] * 3
    assert len(body["logprobs"]) == 3
    told = [(each["token"], each["logprob"], each["top"][0]) for each in body["logprobs"][0]]
    assert told == [("A", -0.5, [500, -0.25]), ("B", -1.0, [500, -0.25])]


def test_the_replica_gets_exactly_what_the_request_names(client: TestClient, backend: FakeBackend) -> None:
    sent = {"num_beams": 2, "temperature": 0.7, "exponential_decay_length_penalty": [3, 1.5], "seed": None}
    client.post("/generate", json={"prompt": "hi", **sent})
    assert backend.model_.calls[-1].parameters == {
        "num_beams": 2,
        "temperature": 0.7,
        "exponential_decay_length_penalty": [3, 1.5],
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "/generate",
            {"prompt": "x", "temprature": 1},
            422,
            "unknown field 'temprature'; did you mean 'temperature'?",
        ),
        ("/generate", {"prompt": "x", "zzzz": 1}, 422, "unknown field 'zzzz'"),
        ("/generate", {}, 422, "'prompt' is required"),
        ("/generate", {"prompt": "x", "stream": True, "logprobs": 0}, 422, "logprobs cannot be streamed here"),
        ("/answer", {"question": "x", "stream": True, "details": True}, 422, "details cannot be streamed here"),
        (
            "/generate",
            {"messages": [{"role": "user", "content": "x", "name": "y"}]},
            422,
            "unknown field 'messages.0.name'",
        ),
        ("/generate", {"messages": [{"role": "user"}]}, 422, "'messages.0.content' is required"),
        ("/generate", {"prompt": ""}, 422, "prompt is empty"),
        ("/generate", {"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, 422, "not both"),
        ("/generate", {"messages": [{"role": "robot", "content": "y"}]}, 422, "messages.0.role"),
        ("/generate", {"prompt": 7}, 422, "prompt: input should be a valid string"),
        ("/generate", {"prompt": "x", "top_p": 1.5}, 422, "top_p: input should be less than or equal to 1"),
        ("/answer", {"prompt": "x", "question": "y"}, 422, "unknown field 'prompt'"),
        ("/answer", {"qestion": "y"}, 422, "unknown field 'qestion'; did you mean 'question'?"),
        ("/generate", [1], 422, "the body is to be a JSON object"),
        (
            "/generate",
            {"prompt": "x", "num_return_sequences": 5, "do_sample": True},
            400,
            "num_return_sequences 5",
        ),
        ("/generate", {"prompt": "x", "num_beams": 100000}, 400, "num_beams 100000 is too many"),
        (
            "/generate",
            {"prompt": "x", "do_sample": False, "top_k": 5},
            400,
            "top_k only matters when sampling",
        ),
        ("/generate", {"prompt": "bad"}, 400, "the prompt is bad"),
        ("/answer", {"question": "bad"}, 400, "the prompt is bad"),
    ],
)
def test_the_callers_mistakes_are_4xx(client: TestClient, path: str, body: Any, status: int, message: str) -> None:
    code, kind, text = error_of(client.post(path, json=body))
    assert (code, kind) == (status, "invalid_request")
    assert message in text


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "prefix": "\\udc00"}',
        b'{"prompt": "x", "temperature": NaN}',
    ],
)
def test_text_and_numbers_that_are_none_are_refused(client: TestClient, raw: bytes) -> None:
    response = client.post("/generate", content=raw, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (422, "invalid_request")


def test_a_body_that_is_not_sent_as_json(client: TestClient) -> None:
    response = client.post("/generate", content=b"prompt=x", headers={"content-type": "text/plain"})
    assert error_of(response)[:2] == (422, "invalid_request")


def test_broken_json(client: TestClient) -> None:
    response = client.post("/generate", content=b'{"prompt": ', headers={"content-type": "application/json"})
    code, kind, message = error_of(response)
    assert (code, kind) == (400, "invalid_request")
    assert "not valid JSON" in message


@pytest.mark.parametrize("field", ["question", "context"])
def test_too_long_a_text_is_413(client: TestClient, field: str) -> None:
    code, kind, message = error_of(client.post("/answer", json={"question": "x", field: "y" * 51}))
    assert (code, kind) == (413, "prompt_too_long")
    assert message == "51 characters are too many; this server takes 50 per text"


def test_unknown_paths_and_methods(client: TestClient) -> None:
    assert error_of(client.get("/nothing"))[:2] == (404, "not_found")
    response = client.get("/generate")
    assert error_of(response)[:2] == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_question_for_a_model_without_a_template() -> None:
    backend = FakeBackend(FakeModel(PLAIN_MODEL))
    with TestClient(create_app(backend, LIMITS)) as client:
        code, _, message = error_of(client.post("/answer", json={"question": "why?"}))
        assert client.post("/generate", json={"prompt": "x"}).json()["text"] == "X"
    assert code == 400
    assert "'fake-lm' (language-modeling) has no prompt template for questions" in message


def test_a_timeout_is_504_and_drops_the_call() -> None:
    backend = FakeBackend(delay_s=30.0)
    with TestClient(create_app(backend, Limits(0.05, 50, 4))) as client:
        code, kind, message = error_of(client.post("/generate", json={"prompt": "x"}))
    assert (code, kind) == (504, "timeout")
    assert "0.05 s" in message
    assert backend.num_cancelled == 1


def test_overload_says_when_to_come_back(client: TestClient, backend: FakeBackend) -> None:
    backend.outcome = Problem(429, "overloaded", "too many", retry_after_s=2)
    response = client.post("/generate", json={"prompt": "x"})
    assert error_of(response) == (429, "overloaded", "too many")
    assert response.headers["retry-after"] == "2"


def test_failures_of_the_server_tell_no_details(client: TestClient, backend: FakeBackend) -> None:
    code, kind, message = error_of(client.post("/generate", json={"prompt": "crash"}))
    assert (code, kind) == (500, "internal")
    assert "secret" not in message
    backend.error = RuntimeError("secret detail")
    code, kind, message = error_of(client.post("/generate", json={"prompt": "x"}))
    assert (code, kind) == (500, "internal")
    assert "secret" not in message


def test_health(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/health").json() == {
        "status": "ok",
        "num_replicas": 1,
        "model": {"name": "fake-qa", "family": "t5", "task": "question-answering"},
    }
    backend.state = Health("idle", 0)
    assert client.get("/health").json() == {"status": "idle", "num_replicas": 0}
    backend.state = Health("not_ready", 0)
    response = client.get("/health")
    assert error_of(response)[:2] == (503, "not_ready")
    assert "retry-after" in response.headers


def test_openapi_derives_every_parameter_from_the_config(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name, own in (
        ("GenerateRequest", ["prompt", "context", "messages", "stream", "details"]),
        ("AnswerRequest", ["question", "context", "stream", "details"]),
        ("CompletionRequest", ["prompt", "max_tokens", "echo", "best_of", "suffix", "stream", "n"]),
        ("ChatRequest", ["messages", "max_completion_tokens", "response_format", "stream", "n"]),
    ):
        properties = schemas[name]["properties"]
        assert list(properties)[-len(GenerationConfig.model_fields) :] == list(GenerationConfig.model_fields)
        assert set(own) < set(properties)
        assert schemas[name]["additionalProperties"] is False
        for field, info in GenerationConfig.model_fields.items():
            assert "default" not in properties[field]
            if field not in ("temperature", "logprobs"):  # OpenAI gives them other types
                assert properties[field]["description"] == info.description


def test_the_documentation_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.url.path == "/docs"
    assert "swagger" in page.text.lower()


def test_calls_wait_side_by_side() -> None:
    app = create_app(FakeBackend(delay_s=0.2), LIMITS)

    async def post_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await asyncio.gather(*(http.post("/generate", json={"prompt": f"p{i}"}) for i in range(20)))

    async def timed() -> tuple[list[httpx.Response], float]:
        start = asyncio.get_running_loop().time()
        return await post_all(), asyncio.get_running_loop().time() - start

    responses, elapsed_s = asyncio.run(timed())
    assert [response.json()["text"] for response in responses] == [f"P{i}" for i in range(20)]
    assert elapsed_s < 2.0


def sent_events(response: httpx.Response) -> list[Any]:
    """Values of a stream; each event must be one line and an empty one."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event if event == "data: [DONE]" else json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize(("path", "field"), [("/generate", "prompt"), ("/answer", "question")])
def test_streams_tell_what_is_answered_whole(client: TestClient, path: str, field: str) -> None:
    body = {field: "one two three", "max_new_tokens": 2}
    whole = client.post(path, json=body).json()
    *pieces, last, done = sent_events(client.post(path, json=body | {"stream": True}))
    assert "".join(piece["text"] for piece in pieces) == "ONE TWO"
    assert last == {"finish_reason": "length", "usage": whole["usage"], "model": "fake-qa"}
    assert done == "data: [DONE]"


def test_a_stream_that_cannot_begin_has_a_status(client: TestClient, backend: FakeBackend) -> None:
    assert error_of(client.post("/generate", json={"prompt": "bad", "stream": True}))[:2] == (400, "invalid_request")
    assert error_of(client.post("/generate", json={"prompt": "crash", "stream": True}))[:2] == (500, "internal")
    backend.error = RuntimeError("secret detail")
    code, kind, message = error_of(client.post("/generate", json={"prompt": "x", "stream": True}))
    assert (code, kind) == (500, "internal")
    assert "secret" not in message


def test_a_stream_that_breaks_says_so_and_ends(client: TestClient) -> None:
    # The fake tells the first word and breaks in the same breath, so one list may hold both.
    response = client.post("/generate", json={"prompt": "one break two", "stream": True})
    if response.status_code == 200:
        *_, last = sent_events(response)
        assert last["error"]["type"] == "internal"
    assert "secret" not in response.text


def test_a_conversation_instead_of_a_prompt(client: TestClient, backend: FakeBackend) -> None:
    messages = [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "you"}]},
    ]
    plain = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello you"}]
    body = client.post("/generate", json={"messages": messages}).json()
    assert body["text"] == "BE HELLO YOU"
    assert backend.model_.calls[-1].prompt.messages == tuple(plain)
    counted = [client.post("/tokenize", json={"messages": each}).json() for each in (messages, plain)]
    assert counted[0] == counted[1]
    assert counted[0]["count"] > 1


def test_details_on_request(client: TestClient) -> None:
    body = client.post("/generate", json={"prompt": "a b c", "max_new_tokens": 2, "details": True}).json()
    assert body["details"] == {
        "prompt_ids": [0, 1, 2],
        "answers": [{"text": "A B", "token_ids": [0, 1], "finish_reason": "length"}],
    }


def test_tokens_and_back(client: TestClient) -> None:
    assert client.post("/tokenize", json={"prompt": "a b"}).json() == {
        "tokens": [0, 1, 2],
        "count": 3,
        "max_model_len": 64,
    }
    assert client.post("/tokenize", json={"prompt": "a b", "add_special_tokens": False}).json()["count"] == 2
    assert client.post("/detokenize", json={"tokens": [4, 5]}).json() == {"prompt": "w4 w5"}
    assert error_of(client.post("/detokenize", json={"tokens": [4], "model": "other"}))[:2] == (404, "model_not_found")
    assert error_of(client.post("/tokenize", json={}))[:2] == (422, "invalid_request")
    assert error_of(client.post("/tokenize", json={"prompt": "x" * 51}))[:2] == (413, "prompt_too_long")


def test_ready(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    backend.state = Health("idle", 0)
    assert client.get("/ready").status_code == 200
    backend.state = Health("not_ready", 0)
    assert error_of(client.get("/ready"))[:2] == (503, "not_ready")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_may_ask_for_less_time(stream: bool) -> None:
    backend = FakeBackend(delay_s=30.0)
    body = {"prompt": "x", "stream": stream}
    with TestClient(create_app(backend, LIMITS)) as client:
        code, kind, message = error_of(client.post("/generate", json=body, headers={"X-Request-Timeout": "0.05"}))
        assert (code, kind) == (504, "timeout")
        assert "0.05 s" in message
        for wrong in ("soon", "-1", "nan"):
            refused = client.post("/generate", json=body, headers={"X-Request-Timeout": wrong})
            assert error_of(refused)[:2] == (400, "invalid_request")
    assert (backend.num_cancelled, backend.num_running) == (1, 0)


def test_too_large_a_body_is_turned_away(client: TestClient, backend: FakeBackend) -> None:
    with TestClient(create_app(backend, Limits(5.0, 50, 4, max_body_bytes=1000))) as client:
        assert error_of(client.post("/generate", json={"prompt": "x" * 1000}))[:2] == (413, "prompt_too_long")

        def in_pieces() -> Iterator[bytes]:
            yield b'{"prompt": "'
            yield b"x" * 1000
            yield b'"}'

        unannounced = client.post("/generate", content=in_pieces(), headers={"content-type": "application/json"})
        assert error_of(unannounced)[:2] == (413, "prompt_too_long")
        assert client.post("/generate", json={"prompt": "x"}).status_code == 200


def test_one_call_too_many_is_told_when_to_come_back() -> None:
    app = create_app(FakeBackend(delay_s=0.05), Limits(5.0, 50, 4, max_in_flight=3))

    async def post_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            first = await asyncio.gather(*(http.post("/generate", json={"prompt": "x"}) for _ in range(9)))
            return [*first, await http.post("/generate", json={"prompt": "x"})]

    *responses, later = asyncio.run(post_all())
    refused = [response for response in responses if response.status_code != 200]
    assert len(refused) == 6
    assert later.status_code == 200
    for response in refused:
        assert error_of(response)[:2] == (429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1


@dataclass
class Stuck(FakeBackend):
    """Whose replicas are all busy, or not there yet."""

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        return await self._told()

    async def models(self) -> Sequence[ModelInfo] | Problem:
        return await self._told()

    async def _told(self) -> Problem:
        if not isinstance(self.outcome, Problem):
            await asyncio.Event().wait()
        assert isinstance(self.outcome, Problem)
        return self.outcome


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tokenize", {"prompt": "x"}),
        ("POST", "/detokenize", {"tokens": [1]}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/fake-qa", None),
    ],
)
def test_what_writes_nothing_has_a_deadline_and_is_told_when_to_come_back(method: str, path: str, body: Any) -> None:
    backend = Stuck()
    with TestClient(create_app(backend, LIMITS)) as client:
        late = client.request(method, path, json=body, headers={"X-Request-Timeout": "0.02"})
        assert (late.status_code, late.json()["error"]["message"]) == (504, "no answer within 0.02 s; try again later")
        assert client.request(method, path, json=body, headers={"X-Request-Timeout": "no"}).status_code == 400
        backend.outcome = Problem(429, "overloaded", "full")
        full = client.request(method, path, json=body)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
