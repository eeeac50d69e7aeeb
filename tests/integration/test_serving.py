"""The Serve application on a local Ray: what HTTP answers is what the Python API writes, and what can be seen of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayloom.config import AutoscalingConfig, ServingConfig
from rayloom.errors import ServiceError
from rayloom.generation import TextGenerator
from rayloom.generation.remote import RemoteTextGenerator
from rayloom.serving import application, serving
from rayloom.serving.deploying import redeploy
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
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.log"


@pytest.fixture(scope="module")
def t5_url(tiny_artifact_t5: Path, log_file: Path) -> Iterator[str]:
    """Two replicas, with everything that lets one see them."""
    config = ServingConfig(
        artifact=str(tiny_artifact_t5),
        num_cpus=0.5,
        max_prompt_chars=2000,
        autoscaling=AutoscalingConfig(min_replicas=2, max_replicas=2),
        page=True,
        log_format="json",
        log_file=str(log_file),
    )
    with serving(config) as url:
        yield url


@pytest.fixture(scope="module")
def t5(tiny_artifact_t5: Path) -> TextGenerator:
    return TextGenerator(tiny_artifact_t5)


def test_health_names_the_model(t5_url: str, t5: TextGenerator) -> None:
    body = httpx.get(f"{t5_url}/health").json()
    assert body["status"] == "ok"
    assert body["num_replicas"] == 2
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


def total(text: str, name: str, **labels: str) -> float:
    """Sum of a sample over all labels that are not given."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_service_can_be_seen(t5_url: str, log_file: Path) -> None:
    before = httpx.get(f"{t5_url}/metrics", timeout=30.0).text
    bodies = [{"prompt": f"who is {name}", "max_new_tokens": 5} for name in ("ann", "bob", "eve", "dan")]
    answers = post_all(t5_url, "/generate", bodies)
    with httpx.stream("POST", f"{t5_url}/generate", json=bodies[0] | {"stream": True}) as response:
        assert response.headers.get_list("x-request-id") != []
        stream_id = response.headers["x-request-id"]
        response.read()
    text = httpx.get(f"{t5_url}/metrics", timeout=30.0).text
    usages = [answer.json()["usage"] for answer in (*answers, answers[0])]
    assert total(text, "rayloom_engine_replicas") == 2
    assert total(text, "rayloom_engine_max_sequences") == 2 * ServingConfig(artifact="x").max_batch_size
    assert total(text, "rayloom_engine_running_sequences") == 0
    assert total(text, "rayloom_requests_in_flight") == 0

    def grown(name: str, **labels: str) -> float:
        return total(text, name, **labels) - total(before, name, **labels)

    assert grown("rayloom_engine_steps_total") > 5
    assert grown("rayloom_prompt_tokens_total", model="tiny-t5") == sum(each["prompt_tokens"] for each in usages)
    written = sum(each["completion_tokens"] for each in usages)
    assert grown("rayloom_generated_tokens_total", model="tiny-t5") == written
    assert grown("rayloom_queue_seconds_count") == 5
    assert grown("rayloom_time_to_first_token_seconds_count") == 5
    lines = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    requests = [line for line in lines if line["message"] == "request" and line["route"] == "/generate"][-5:]
    assert requests[-1]["generated_tokens"] == usages[0]["completion_tokens"]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert ids | {stream_id} == {line["request_id"] for line in requests}
    assert "who is" not in log_file.read_text(encoding="utf-8")


def test_the_page_and_a_callers_own_request_id(t5_url: str) -> None:
    own = httpx.get(f"{t5_url}/ready", headers={"X-Request-Id": "mine"}).headers
    assert own.get_list("x-request-id") == ["mine"]
    page = httpx.get(f"{t5_url}/ui/")
    assert page.status_code == 200
    assert "gradio" in page.text


@pytest.mark.slow
def test_a_causal_model_with_an_adapter(t5_url: str, tiny_artifact_llama: Path) -> None:
    """It takes the other one's place, under the same address: this is the last test here."""
    generator = TextGenerator(tiny_artifact_llama)
    config = ServingConfig(artifact=str(tiny_artifact_llama), num_cpus=0.5, generation={"max_new_tokens": 5})
    redeploy(application(config), "rayloom")
    responses = post_all(t5_url, "/generate", [{"prompt": question} for question in QUESTIONS])
    assert [each.json()["text"] for each in responses] == [
        generator.generate(question, max_new_tokens=5) for question in QUESTIONS
    ]
