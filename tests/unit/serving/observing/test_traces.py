"""Spans of requests, kept in memory by OpenTelemetry's own SDK."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from rayloom.errors import ConfigError
from rayloom.serving.limits import Limits
from rayloom.serving.observing.observer import Observer
from rayloom.serving.observing.traces import ENDPOINT_VARIABLES, Spans, open_spans
from rayloom.serving.routes import create_app
from tests.fakes_serving import TIMING, FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(FakeBackend(), LIMITS, observer=Observer(spans=Spans(provider)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def spans(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The request's span, and those in it."""
    found = exporter.get_finished_spans()
    (server,) = [span for span in found if span.kind is SpanKind.SERVER]
    inner = [span for span in found if span.kind is not SpanKind.SERVER]
    assert all(span.parent and span.parent.span_id == server.context.span_id for span in inner)
    assert {span.context.trace_id for span in inner} <= {server.context.trace_id}
    return server, inner


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_span_with_what_became_of_it(
    client: TestClient, exporter: InMemorySpanExporter, stream: bool
) -> None:
    body = {"model": "fake-qa", "prompt": "a b c", "stream": stream}
    client.post("/v1/completions", json=body, headers={"X-Request-Id": "id-7"})
    server, inner = spans(exporter)
    assert server.name == "POST /v1/completions"
    assert server.attributes is not None
    assert server.attributes["rayloom.request_id"] == "id-7"
    assert server.attributes["http.response.status_code"] == 200
    assert [span.name for span in inner] == ["queue", "prefill", "decode"]
    start = int(TIMING.submitted_at * 1e9)
    borders = [start, start + 250_000_000, start + 750_000_000, start + 2_750_000_000]
    assert [(span.start_time, span.end_time) for span in inner] == list(zip(borders, borders[1:], strict=False))
    assert all(
        dict(span.attributes or {})
        == {
            "rayloom.call": 0,
            "gen_ai.response.model": "fake-qa",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 3,
        }
        for span in inner
    )


def test_every_prompt_has_its_own(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.post("/v1/completions", json={"model": "fake-qa", "prompt": ["a", "b"]})
    assert [(span.attributes or {})["rayloom.call"] for span in spans(exporter)[1]] == [0] * 3 + [1] * 3


def test_a_trace_that_a_client_began_goes_on(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.post("/generate", json={"prompt": "a"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    server, inner = spans(exporter)
    assert len(inner) == 3
    assert f"{server.context.trace_id:032x}" == TRACE
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == PARENT


def test_what_a_client_does_not_sample_is_not_kept(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.post("/generate", json={"prompt": "a"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert exporter.get_finished_spans() == ()


def test_requests_at_once_keep_their_spans_apart(client: TestClient, exporter: InMemorySpanExporter) -> None:
    async def ask() -> None:
        await asyncio.gather(*(asyncio.to_thread(client.post, "/generate", json={"prompt": "a"}) for _ in range(4)))

    asyncio.run(ask())
    found = exporter.get_finished_spans()
    servers = {span.context.span_id for span in found if span.kind is SpanKind.SERVER}
    assert len(servers) == 4
    parents = [span.parent.span_id for span in found if span.parent]
    assert sorted(parents) == sorted(list(servers) * 3)


def test_a_refused_request_has_no_phases_and_a_failed_one_is_an_error(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    client.post("/generate", json={"prompt": "crash"})
    server, inner = spans(exporter)
    assert inner == []
    assert not server.status.is_ok
    assert "secret" not in server.to_json()
    assert "crash" not in server.to_json()  # nor is the prompt


def test_probes_have_none(client: TestClient, exporter: InMemorySpanExporter) -> None:
    for probe in ("/health", "/ready", "/metrics"):
        client.get(probe)
    assert exporter.get_finished_spans() == ()


@pytest.fixture
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_variables")
def test_they_go_where_the_config_or_the_usual_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_spans(None) is None
    by_config = open_spans("http://127.0.0.1:9")
    assert by_config is not None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    opened = open_spans(None)
    assert opened is not None
    assert opened.provider.resource.attributes["service.name"] == "rayloom"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    named = open_spans(None)
    assert named is not None
    assert named.provider.resource.attributes["service.name"] == "mine"
    for each in (by_config, opened, named):
        each.provider.shutdown()


@pytest.mark.usefixtures("_no_variables")
def test_a_collector_gets_them_by_otlp() -> None:
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = open_spans(f"http://127.0.0.1:{server.server_port}/")
        assert opened is not None
        with TestClient(create_app(FakeBackend(), LIMITS, observer=Observer(spans=opened))) as client:
            client.post("/generate", json={"prompt": "a"})
        opened.provider.shutdown()
        server.shutdown()
    assert {path for path, _ in bodies} == {"/v1/traces"}
    sent = b"".join(body for _, body in bodies)
    if sent.startswith(b"\x1f\x8b"):
        sent = gzip.decompress(sent)
    assert all(name in sent for name in (b"POST /generate", b"queue", b"prefill", b"decode"))


@pytest.mark.usefixtures("_no_variables")
def test_without_the_extra_the_config_is_refused_and_the_variable_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'rayloom\[tracing\]'"):
        open_spans("http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # may be meant for another program
    assert open_spans(None) is None


def test_without_traces_no_sdk_is_imported() -> None:
    code = (
        "import sys; from rayloom.serving.observing.observer import Observer;"
        "from rayloom.serving.observing.traces import open_spans; open_spans(None); Observer().telemetry();"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry.sdk')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "[]"
