"""The Serve application on a local Ray: what HTTP answers is what the Python API writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rayloom.config import ServingConfig
from rayloom.errors import ServiceError
from rayloom.generation import TextGenerator
from rayloom.generation.remote import RemoteTextGenerator
from rayloom.serving import serving
from tests.fakes_serving import post_all
from tests.integration.attacking import send, statuses

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

QUESTIONS = [
    "What is a kestrel?",
    "Who built the mill?",
    "Why?",
    "Where does the river that passes the town end?",
]
CONTEXT = "The river flows past the old mill."


@pytest.fixture(scope="module")
def t5_url(tiny_artifact_t5: Path) -> Iterator[str]:
    config = ServingConfig(artifact=str(tiny_artifact_t5), num_cpus=0.5, max_prompt_chars=2000)
    with serving(config) as url:
        yield url


@pytest.fixture(scope="module")
def t5(tiny_artifact_t5: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_t5)


def test_health_names_the_model(t5_url: str, t5: TextGenerator) -> None:
    body = httpx.get(f"{t5_url}/health").json()
    assert body["status"] == "ok"
    assert body["num_replicas"] == 1
    assert body["model"] == {"name": t5.name, "family": "t5", "task": t5.template.task}


def test_calls_in_one_batch_get_what_each_gets_alone(t5_url: str, t5: TextGenerator) -> None:
    asked = [
        {"question": question, "context": CONTEXT, "max_new_tokens": limit, **more}
        for question in QUESTIONS
        for limit in (3, 8)
        for more in ({}, {"num_beams": 2})
    ]
    responses = post_all(t5_url, "/answer", asked)
    assert [response.status_code for response in responses] == [200] * len(asked)
    for body, response in zip(asked, responses, strict=True):
        params = {key: value for key, value in body.items() if key not in ("question", "context")}
        assert response.json()["answer"] == t5.generate(str(body["question"]), context=CONTEXT, **params)
        assert response.json()["usage"]["completion_tokens"] <= int(str(body["max_new_tokens"]))


def test_a_seed_gives_the_same_text_again(t5_url: str, t5: TextGenerator) -> None:
    body = {"prompt": "why", "do_sample": True, "seed": 7, "max_new_tokens": 8, "num_generations": 2}
    first, second = post_all(t5_url, "/generate", [body, body])
    assert first.json()["texts"] == second.json()["texts"]
    params = {key: value for key, value in body.items() if key != "prompt"}
    assert first.json()["texts"] == t5.generate("why", **params)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/answer", {"question": "x", "max_tokens": 3}, 422),
        ("/v1/completions", {"prompt": "x", "tools": []}, 400),
        ("/answer", {"question": "x", "num_beams": 2, "num_beam_groups": 3}, 400),
        ("/generate", {"prompt": "x", "json_schema": {"type": "no such type"}}, 400),
        ("/generate", {"prompt": "x" * 2001}, 413),
        ("/nothing", {}, 404),
    ],
)
def test_the_callers_mistakes(t5_url: str, path: str, body: dict[str, Any], status: int) -> None:
    response = httpx.post(f"{t5_url}{path}", json=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_documentation(t5_url: str) -> None:
    assert httpx.get(f"{t5_url}/docs").status_code == 200
    assert {"/generate", "/answer", "/health", "/v1/completions"} <= set(
        httpx.get(f"{t5_url}/openapi.json").json()["paths"]
    )


def test_openais_client_streams_through_serve(t5_url: str, t5: TextGenerator) -> None:
    with openai.OpenAI(base_url=f"{t5_url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [t5.name]
        for question in QUESTIONS[:2]:
            messages: Any = [{"role": "user", "content": question}]
            chunks = list(client.chat.completions.create(model=t5.name, messages=messages, stream=True, temperature=0))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == t5.generate(question)
            assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="gpt-4", prompt="x", stream=True)
        with pytest.raises(openai.BadRequestError, match="max_length 1 leaves no room"):
            client.completions.create(model=t5.name, prompt="x", stream=True, extra_body={"max_length": 1})


def test_our_own_client_through_serve(t5_url: str, t5: TextGenerator) -> None:
    remote = TextGenerator(endpoint=t5_url)
    assert remote.generate_batch(QUESTIONS, contexts=[CONTEXT] * 4) == t5.generate_batch(
        QUESTIONS, contexts=[CONTEXT] * 4
    )
    assert "".join(remote.stream("Why?")) == t5.generate("Why?")
    assert isinstance(remote, RemoteTextGenerator)
    remote.close()


def test_only_one_at_a_time(t5_url: str, tiny_artifact_t5: Path) -> None:
    with (
        pytest.raises(ServiceError, match="runs on this Ray already"),
        serving(ServingConfig(artifact=str(tiny_artifact_t5))),
    ):
        pytest.fail("a second one was served")
    assert httpx.get(f"{t5_url}/health").status_code == 200


def test_serves_proxies_bear_attacks_on_connections(t5_url: str) -> None:
    host, port = t5_url.removeprefix("http://").split(":")
    # Only `BoundedProtocol` answers this; with it come its time limits, which test_attacks_connections.py tests.
    flood = [b"GET /ready HTTP/1.1\r\n", *[b"X-A: " + b"a" * 1000 + b"\r\n"] * 4000]
    assert statuses(send((host, int(port)), flood)) in ([400], [])
    assert statuses(send((host, int(port)), [b"GET /ready HTTP/1.1\r\n" + b"X-A: b\r\n" * 200])) == [400]
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert statuses(send((host, int(port)), [head + b"Content-Length: 99999999999\r\n\r\n"])) == [413]
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    endless = [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 400]
    assert statuses(send((host, int(port)), endless)) in ([413], [])
    assert httpx.get(f"{t5_url}/ready").status_code == 200
