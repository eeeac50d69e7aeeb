"""`/metrics` over a service that pretends: what was asked of it is what it counts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.arms import ArmCall
from rayloom.serving.calls import Call, Event, Figures, Part, Problem, Started
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.observing.metrics import MOST_NAMES, Metrics
from rayloom.serving.observing.observer import Observer
from rayloom.serving.observing.records import CallRecord, Record
from rayloom.serving.observing.routes import Shared
from rayloom.serving.routes import create_app
from tests.fakes_serving import FIGURES, FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)
MODEL = {"model": "fake-qa", "adapter": ""}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with TestClient(create_app(backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


def figure(client: TestClient, name: str, **labels: str) -> float | None:
    """A sample's value; None if there is none."""
    return found(client.get("/metrics").text, name, **labels)


def found(text: str, name: str, **labels: str) -> float | None:
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    values = [each.value for each in samples if each.name == name and each.labels == labels]
    assert len(values) <= 1
    return values[0] if values else None


def test_a_whole_answer_is_counted_once_with_its_tokens_and_times(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "a b c", "max_new_tokens": 2})
    request = {"route": "/generate", **MODEL}
    assert figure(client, "rayloom_requests_total", **request, status="200") == 1.0
    assert figure(client, "rayloom_request_seconds_count", **request) == 1.0
    assert figure(client, "rayloom_prompt_tokens_total", **MODEL) == 3.0
    assert figure(client, "rayloom_generated_tokens_total", **MODEL) == 2.0
    assert figure(client, "rayloom_queue_seconds_sum", **MODEL) == 0.25
    assert figure(client, "rayloom_time_to_first_token_seconds_sum", **MODEL) == 0.75  # the engine's: queue and prefill
    assert figure(client, "rayloom_inter_token_seconds_sum", **MODEL) == 0.5  # two seconds, five tokens
    assert figure(client, "rayloom_requests_in_flight") == 0.0


def test_a_stream_is_timed_as_it_goes_out(client: TestClient) -> None:
    client.post("/v1/completions", json={"model": "fake-qa", "prompt": "a b c", "stream": True})
    assert figure(client, "rayloom_requests_total", route="/v1/completions", **MODEL, status="200") == 1.0
    assert figure(client, "rayloom_generated_tokens_total", **MODEL) == 3.0
    assert figure(client, "rayloom_time_to_first_token_seconds_count", **MODEL) == 1.0
    assert (figure(client, "rayloom_time_to_first_token_seconds_sum", **MODEL) or 9.9) < 0.75  # not the engine's tale
    assert figure(client, "rayloom_queue_seconds_count", **MODEL) == 1.0


def test_each_prompt_of_a_request_is_a_call(client: TestClient) -> None:
    client.post("/v1/completions", json={"model": "fake-qa", "prompt": ["a b", "c"]})
    assert figure(client, "rayloom_queue_seconds_count", **MODEL) == 2.0
    assert figure(client, "rayloom_prompt_tokens_total", **MODEL) == 3.0
    assert figure(client, "rayloom_request_seconds_count", route="/v1/completions", **MODEL) == 1.0


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Problem(429, "overloaded", "m"), "overloaded"),
        (Problem(504, "timeout", "m"), "timeout"),
        (Problem(503, "not_ready", "m"), "not_ready"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_counted_by_reason(
    client: TestClient, backend: FakeBackend, outcome: Problem, reason: str, stream: bool
) -> None:
    backend.outcome = outcome
    client.post("/generate", json={"prompt": "a", "stream": stream})
    assert figure(client, "rayloom_rejections_total", route="/generate", model="", reason=reason) == 1.0
    labels = {"route": "/generate", "model": "", "adapter": "", "status": str(outcome.status)}
    assert figure(client, "rayloom_requests_total", **labels) == 1.0
    assert figure(client, "rayloom_prompt_tokens_total", **MODEL) is None


def test_what_never_reaches_a_model_is_counted_too(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "x" * 51})
    client.post("/generate", json={"prompt": 7})
    client.get("/generate")
    reasons = ("prompt_too_long", "invalid_request", "method_not_allowed")
    for reason in reasons:
        assert figure(client, "rayloom_rejections_total", route="/generate", model="", reason=reason) == 1.0
    with TestClient(create_app(FakeBackend(), dataclasses.replace(LIMITS, max_body_bytes=1024))) as small:
        small.post("/generate", json={"prompt": "x" * 2000})
        assert figure(small, "rayloom_requests_total", route="/generate", model="", adapter="", status="413") == 1.0


def test_an_error_of_ours_is_a_500(client: TestClient, backend: FakeBackend) -> None:
    backend.error = RuntimeError("secret detail")
    client.post("/generate", json={"prompt": "a"})
    assert figure(client, "rayloom_rejections_total", route="/generate", model="", reason="internal") == 1.0
    assert figure(client, "rayloom_requests_total", route="/generate", model="", adapter="", status="500") == 1.0
    assert figure(client, "rayloom_requests_in_flight") == 0.0


class BreakingBackend(FakeBackend):
    """Breaks when the first words are on their way."""

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        yield Started("fake-qa", "fp", 3)
        yield Part(0, "A", 1)
        await asyncio.sleep(0.05)
        yield Part(0, " B", 1)
        yield Problem(500, "internal", "m")


def test_a_stream_that_breaks_is_counted() -> None:
    with TestClient(create_app(BreakingBackend(), LIMITS)) as client:
        assert client.post("/generate", json={"prompt": "a", "stream": True}).status_code == 200
        labels = {"route": "/generate", "model": "fake-qa"}
        assert figure(client, "rayloom_rejections_total", **labels, reason="internal") == 1.0
        assert figure(client, "rayloom_requests_total", **labels, adapter="", status="200") == 1.0
        assert figure(client, "rayloom_generated_tokens_total", **MODEL) == 2.0
        assert figure(client, "rayloom_stream_gap_seconds_count", **MODEL) == 1.0
        assert (figure(client, "rayloom_stream_gap_seconds_sum", **MODEL) or 0.0) >= 0.05
        assert figure(client, "rayloom_queue_seconds_count", **MODEL) == 0.0  # it was never finished


def test_what_clients_think_of_makes_no_labels(client: TestClient) -> None:
    for place in range(50):
        client.get(f"/nothing/{place}")
        client.post("/v1/completions", json={"model": f"thought-up-{place}", "prompt": "a"})
        client.get(f"/v1/models/thought-up-{place}")
    text = client.get("/metrics").text
    assert "thought-up" not in text
    assert found(text, "rayloom_rejections_total", route="other", model="", reason="not_found") == 50.0
    by_name = {"route": "/v1/models/{model:path}", "model": "", "reason": "model_not_found"}
    assert found(text, "rayloom_rejections_total", **by_name) == 50.0


def test_names_of_models_and_adapters_are_bounded() -> None:
    metrics = Metrics()
    for place in range(2 * MOST_NAMES):
        started = Started(f"m{place}", "", 1, adapter=f"a{place}")
        metrics.add(Record(route="/generate", status=200, calls=[CallRecord(started)]))
    figures = dataclasses.replace(FIGURES, adapters={f"b{place}": 1 for place in range(5)})
    text = metrics.text([figures], "")[0].decode()
    assert text.count("rayloom_requests_total{") == MOST_NAMES + 1
    assert found(text, "rayloom_prompt_tokens_total", model="other", adapter="other") == MOST_NAMES
    crowd = {"model": "other", "adapter": "other", "replica": "replica-1"}
    assert found(text, "rayloom_engine_adapter_requests", **crowd) == 5.0


def test_what_a_client_names_is_a_label_once_the_service_has_told_it(client: TestClient, backend: FakeBackend) -> None:
    client.post("/generate", json={"prompt": "a"})
    backend.outcome = Problem(429, "overloaded", "m")
    client.post("/v1/completions", json={"model": "fake-qa", "prompt": "a"})
    labels = {"route": "/v1/completions", "model": "fake-qa", "reason": "overloaded"}
    assert figure(client, "rayloom_rejections_total", **labels) == 1.0


def test_arms_of_a_split_are_told_apart() -> None:
    metrics = Metrics()
    metrics.arms.ended(ArmCall("qa", "old", is_shadow=False, status=200, seconds=0.5, num_tokens=3))
    metrics.arms.ended(ArmCall("qa", "new", is_shadow=True, status=504, seconds=2.0, num_tokens=1))
    text = metrics.text([], "")[0].decode()
    old, new = {"split": "qa", "arm": "old", "shadow": "no"}, {"split": "qa", "arm": "new", "shadow": "yes"}
    assert found(text, "rayloom_arm_calls_total", **old, status="200") == 1.0
    assert found(text, "rayloom_arm_calls_total", **new, status="504") == 1.0
    assert found(text, "rayloom_arm_tokens_total", **old) == 3.0
    assert found(text, "rayloom_arm_call_seconds_sum", **new) == 2.0


def test_the_replicas_figures(client: TestClient) -> None:
    replica = {"model": "fake-qa", "replica": "replica-1"}
    assert figure(client, "rayloom_engine_running_sequences", **replica) == 5.0
    assert figure(client, "rayloom_engine_max_sequences", **replica) == 8.0
    assert figure(client, "rayloom_engine_waiting_requests", **replica) == 2.0
    assert figure(client, "rayloom_engine_cache_used_blocks", **replica) == 40.0
    assert figure(client, "rayloom_engine_cache_blocks", **replica) == 100.0
    assert figure(client, "rayloom_engine_prefix_hit_tokens_total", **replica) == 300.0
    assert figure(client, "rayloom_engine_preemptions_total", **replica) == 1.0
    assert figure(client, "rayloom_engine_adapters", **replica) == 2.0
    assert figure(client, "rayloom_engine_replicas", model="fake-qa") == 1.0
    assert figure(client, "rayloom_engine_adapter_requests", **replica, adapter="tuned") == 3.0


def test_a_replica_that_is_gone_is_gone_here_too(client: TestClient, backend: FakeBackend) -> None:
    client.get("/metrics")
    backend.figures = _none  # type: ignore[method-assign]
    text = client.get("/metrics").text
    assert "replica-1" not in text
    assert "rayloom_requests_total" in text


async def _none() -> list[Figures]:
    return []


def test_scrapers_that_come_together_ask_the_replicas_once() -> None:
    asked = 0

    async def ask() -> list[Figures]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return [FIGURES]

    async def scrape() -> None:
        shared = Shared(ask)
        assert await asyncio.gather(*(shared.get() for _ in range(5))) == [[FIGURES]] * 5
        assert asked == 1
        await shared.get()
        assert asked == 2

    asyncio.run(scrape())


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=nonsense", "application/openmetrics-text"])
def test_open_metrics_whatever_version_is_named(client: TestClient, accept: str) -> None:
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")


def test_a_usual_scraper_gets_the_usual_text(client: TestClient) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_two_services_of_one_process_keep_books_of_their_own(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "a"})
    with TestClient(create_app(FakeBackend(), LIMITS)) as other:
        assert figure(other, "rayloom_generated_tokens_total", **MODEL) is None


def test_with_keys_it_takes_one_of_scope_metrics(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.yaml")
    plain, scraper = store.create("app", Terms()), store.create("prometheus", Terms(scopes=("metrics",)))
    access = Access(LiveKeys(tmp_path / "keys.yaml"))
    with TestClient(create_app(FakeBackend(), LIMITS, access=access)) as client:

        def get(secret: str | None) -> httpx.Response:
            return client.get("/metrics", headers={} if secret is None else {"Authorization": f"Bearer {secret}"})

        assert [get(secret).status_code for secret in (None, plain, scraper)] == [401, 403, 200]
        text = get(scraper).text
        for reason in ("unauthorized", "forbidden"):
            assert found(text, "rayloom_rejections_total", route="/metrics", model="", reason=reason) == 1.0
        assert "prometheus" not in text  # names of keys are in the log only


def test_an_id_comes_back_or_is_made(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {client.get("/health").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    with TestClient(create_app(FakeBackend(), LIMITS, observer=Observer(returns_id=False))) as behind_serve:
        assert "x-request-id" not in behind_serve.get("/health").headers
