from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from rayloom.errors import ConfigError
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.rates import Rates
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "a b"},
    "/answer": {"question": "a b"},
    "/v1/completions": {"model": "fake-qa", "prompt": "a b"},
    "/v1/chat/completions": {"model": "fake-qa", "messages": [{"role": "user", "content": "a b"}]},
    "/tokenize": {"prompt": "a b"},
    "/detokenize": {"tokens": [1]},
}


@dataclass
class Door:
    """A service with keys whose clocks stand still until they are moved."""

    path: Path
    now_s: float = 1000.0
    today: datetime = datetime(2026, 11, 22, tzinfo=UTC)
    backend: FakeBackend = field(default_factory=FakeBackend)
    store: KeyStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = KeyStore(self.path, clock=lambda: self.today)

    def app(self, limits: Limits = LIMITS, **options: Any) -> Any:
        keys = LiveKeys(self.path, clock=lambda: self.now_s)
        access = Access(keys, Rates(clock=lambda: self.now_s), now=lambda: self.today)
        return create_app(self.backend, limits, access=access, **options)

    def client(self, secret: str | None = None, **options: Any) -> TestClient:
        headers = {} if secret is None else bearer(secret)
        return TestClient(self.app(**options), raise_server_exceptions=False, headers=headers)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "keys.yaml")


@pytest.fixture
def opened(door: Door) -> Iterator[Callable[..., TestClient]]:
    contexts: list[AbstractContextManager[Any]] = []

    def opened(*args: Any, **options: Any) -> TestClient:
        client = door.client(*args, **options)
        contexts.append(client)
        return client.__enter__()

    yield opened
    for context in contexts:
        context.__exit__(None, None, None)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def told(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert response.headers.get("www-authenticate") == ("Bearer" if response.status_code == 401 else None)
    return response.status_code, error["message"]


@pytest.mark.parametrize("path", [*BODIES, "/v1/models", "/v1/models/fake-qa", "/nothing"])
def test_every_route_asks_for_a_key(door: Door, opened: Callable[..., TestClient], path: str) -> None:
    secret = door.store.create("app", Terms())
    client = opened()
    call = {"method": "POST" if path in BODIES else "GET", "url": path, "json": BODIES.get(path)}
    assert told(client.request(**call))[0] == 401
    refused = client.request(**call, headers=bearer("rl-wrong"))
    assert told(refused) == (401, "the API key is not known here")
    error = refused.json()["error"]
    if path.startswith("/v1/"):
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    else:
        assert error["type"] == "unauthorized"
    assert not door.backend.model_.calls
    assert client.request(**call, headers=bearer(secret)).status_code == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "Basic {}",
        "Bearer",
        "Bearer ",
        "Bearer {}x",
        "Bearer x{}",
        "Bearer {} {}",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 8000,
    ],
)
def test_what_is_no_key(door: Door, opened: Callable[..., TestClient], header: str) -> None:
    secret = door.store.create("app", Terms())
    value = header.replace("{}", secret).encode("latin-1")
    response = opened().post("/generate", json=BODIES["/generate"], headers={b"authorization": value})
    assert told(response)[0] == 401
    assert secret not in response.text


def test_the_word_bearer_may_be_written_anyhow_but_not_twice(door: Door, opened: Callable[..., TestClient]) -> None:
    secret = door.store.create("app", Terms())
    client, body = opened(), BODIES["/generate"]
    assert client.post("/generate", json=body, headers={"Authorization": f"bearer  {secret} "}).status_code == 200
    twice = [(b"authorization", f"Bearer {secret}".encode()), (b"authorization", b"Bearer x")]
    assert client.post("/generate", json=body, headers=twice).status_code == 401


def test_open_paths(door: Door, opened: Callable[..., TestClient]) -> None:
    door.store.create("app", Terms())
    client = opened()
    for path in ("/", "/docs", "/health", "/ready", "/openapi.json"):
        assert client.get(path).status_code == 200
    for path in ("/health/", "/health//", "/Health", "/docs/x"):
        assert client.get(path).status_code == 401


def test_the_document_tells_of_keys_only_where_there_are_any(door: Door, opened: Callable[..., TestClient]) -> None:
    door.store.create("app", Terms())
    schema = opened().get("/openapi.json").json()
    assert schema["components"]["securitySchemes"] == {"ApiKey": {"type": "http", "scheme": "bearer"}}
    assert schema["security"] == [{"ApiKey": []}]
    assert schema["paths"]["/health"]["get"]["security"] == []
    assert "security" not in schema["paths"]["/generate"]["post"]
    assert "401" in schema["paths"]["/generate"]["post"]["responses"]
    assert "security" not in create_app(FakeBackend(), LIMITS).openapi()


def test_revoked_and_expired_keys(door: Door, opened: Callable[..., TestClient]) -> None:
    brief, revoked = door.store.create("brief", Terms(days=1)), door.store.create("revoked", Terms())
    door.store.revoke("revoked")
    client, body = opened(), BODIES["/generate"]
    assert told(client.post("/generate", json=body, headers=bearer(revoked))) == (
        401,
        "the API key 'revoked' was revoked",
    )
    assert client.post("/generate", json=body, headers=bearer(brief)).status_code == 200
    door.today += timedelta(days=1)
    assert told(client.post("/generate", json=body, headers=bearer(brief))) == (401, "the API key 'brief' has expired")


def test_a_key_without_the_scope(door: Door, opened: Callable[..., TestClient]) -> None:
    client = opened(door.store.create("watcher", Terms(scopes=("metrics",))))
    for path, body in BODIES.items():
        response = client.post(path, json=body)
        assert told(response) == (403, "the API key 'watcher' lacks the scope 'generate'; it has: metrics")
    assert client.get("/v1/models").status_code == 200
    assert client.get("/metrics").status_code == 200
    response = opened(door.store.create("app", Terms())).get("/metrics")
    assert told(response)[0] == 403


def test_a_running_server_notices_changes(door: Door, opened: Callable[..., TestClient]) -> None:
    first = door.store.create("first", Terms())
    client = opened()

    def statuses(*secrets: str) -> list[int]:
        return [client.get("/v1/models", headers=bearer(secret)).status_code for secret in secrets]

    second = door.store.create("second", Terms())
    assert statuses(first, second) == [200, 401]
    door.now_s += 1
    assert statuses(first, second) == [200, 200]
    door.store.revoke("first")
    door.now_s += 1
    assert statuses(first, second) == [401, 200]


def test_a_broken_file_keeps_the_last_good_keys(
    door: Door, opened: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    secret = door.store.create("app", Terms())
    client, good = opened(secret), door.path.read_text()
    for number, broken in enumerate(("keys: [", "keys:\n  - name: app\n    sha256: " + secret + "\n", None), start=1):
        os.unlink(door.path) if broken is None else door.path.write_text(broken)
        for _ in range(3):
            door.now_s += 1
            assert client.get("/v1/models").status_code == 200
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == number
        assert "the keys stay as they were" in errors[-1].getMessage()
        assert "keys.yaml" in errors[-1].getMessage()
        assert secret not in caplog.text
    door.path.write_text(good.replace("name: app", "name: renamed"))
    door.now_s += 1
    assert client.post("/generate", json=BODIES["/generate"]).status_code == 200
    assert door.backend.model_.calls[-1].owner == "renamed"


def test_a_service_does_not_start_on_missing_or_broken_keys(door: Door) -> None:
    with pytest.raises(ConfigError, match=r"no such file[^$]*rayloom keys create NAME --keys .*keys\.yaml"):
        door.app()
    door.path.write_text("keys: 7")
    with pytest.raises(ConfigError, match=r"keys\.yaml"):
        door.app()


@pytest.mark.parametrize("stream", [False, True])
def test_calls_carry_their_owner_and_priority(door: Door, opened: Callable[..., TestClient], stream: bool) -> None:
    client = opened(door.store.create("app", Terms(priority=-3)))
    for path in ("/generate", "/answer", "/v1/completions", "/v1/chat/completions"):
        assert client.post(path, json=BODIES[path] | {"stream": stream}).status_code == 200
        call = door.backend.model_.calls[-1]
        assert (call.owner, call.priority) == ("app", -3)


def test_requests_per_minute(door: Door, opened: Callable[..., TestClient]) -> None:
    slow, other = door.store.create("slow", Terms(requests_per_minute=2)), door.store.create("other", Terms())
    client = opened(slow)
    assert client.post("/generate", json={"prompt": "x" * 51}).status_code == 413  # what is refused does not count
    assert client.post("/generate", json=BODIES["/generate"]).status_code == 200
    assert client.post("/tokenize", json=BODIES["/tokenize"]).status_code == 200
    for path, body in BODIES.items():
        refused = client.post(path, json=body)
        message = "the key 'slow' has 2 requests per minute; try again in 30 s"
        assert told(refused) == (429, message)
        assert refused.headers["retry-after"] == "30"
    assert client.post("/v1/completions", json=BODIES["/v1/completions"]).json()["error"] == {
        "message": message,
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert client.post("/generate", json=BODIES["/generate"], headers=bearer(other)).status_code == 200
    door.now_s += 30
    assert client.post("/generate", json=BODIES["/generate"]).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_tokens_of_prompts_and_answers_are_paid_for(
    door: Door, opened: Callable[..., TestClient], path: str, stream: bool
) -> None:
    client = opened(door.store.create("app", Terms(tokens_per_minute=60)))
    body = BODIES[path] | {"stream": stream, "max_new_tokens": 2}
    num_answered = 0
    while (response := client.post(path, json=body)).status_code == 200:
        num_answered += 1
        assert response.text
    # 2 tokens are read and 2 written; as long as anything is left, one more is let in.
    assert num_answered == 15
    assert told(response)[0] == 429
    assert response.headers["retry-after"] == "1"


def test_prompts_of_one_request_are_counted_one_by_one(door: Door, opened: Callable[..., TestClient]) -> None:
    client = opened(door.store.create("app", Terms(requests_per_minute=4)))
    body = {"model": "fake-qa", "prompt": ["a", "b", "c"]}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert client.post("/v1/completions", json=body).status_code == 429


def test_a_flood_leaves_room_for_others(door: Door) -> None:
    flood, other = door.store.create("flood", Terms()), door.store.create("other", Terms())
    door.backend.delay_s = 0.05
    app = door.app(Limits(5.0, 50, 4, max_in_flight=18))

    async def statuses() -> tuple[list[int], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = BODIES["/generate"]
            many = [http.post("/generate", json=body, headers=bearer(flood)) for _ in range(40)]
            pending = [asyncio.ensure_future(each) for each in many]
            while not any(each.done() for each in pending):  # the first that end are those that are refused
                await asyncio.sleep(0)
            one = await http.post("/generate", json=body, headers=bearer(other))
            return [response.status_code for response in await asyncio.gather(*pending)], one.status_code

    of_flood, of_other = asyncio.run(statuses())
    assert of_flood.count(200) == 16
    assert of_flood.count(429) == 24
    assert of_other == 200


def test_neither_prompts_nor_keys_are_logged(
    door: Door, opened: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = door.store.create("app", Terms(requests_per_minute=1000))
    client = opened(secret)
    for text in ("marker", "marker break", "marker " * 20):
        for stream in (False, True):
            client.post("/generate", json={"prompt": text, "stream": stream})
            client.post("/generate", json={"prompt": text, "stream": stream, "temprature": "marker"})
            client.post("/v1/completions", json={"prompt": text, "stream": stream, "max_tokens": "marker"})
            client.post("/v1/completions", json={"prompt": text, "stream": stream}, headers=bearer("rl-marker"))
    door.backend.error = RuntimeError("a failure")
    client.post("/generate", json={"prompt": "marker"})
    assert "request failed" in caplog.text
    assert "marker" not in caplog.text
    assert secret not in caplog.text


def test_cross_origin_calls_only_where_they_are_configured(door: Door, opened: Callable[..., TestClient]) -> None:
    secret = door.store.create("app", Terms())
    asked = {
        "Origin": "https://site.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    closed = opened(secret)
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers=asked).headers
    assert closed.options("/generate", headers=asked).status_code == 405
    allowed = opened(cors_origins=["https://site.example"])
    before = allowed.options("/generate", headers=asked)  # browsers send no key with it
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "https://site.example"
    assert "access-control-allow-credentials" not in before.headers
    refused = allowed.post("/generate", json=BODIES["/generate"], headers={"Origin": "https://site.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://site.example"  # so that the page can read why
    other = allowed.options("/generate", headers=asked | {"Origin": "https://other.example"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_a_body_is_not_read_before_the_key_is_known(door: Door) -> None:
    door.store.create("app", Terms())
    app, sent = door.app(), list[Any]()

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401
    websocket = {"type": "websocket", "path": "/generate", "headers": [], "query_string": b""}
    asyncio.run(app(websocket, receive, send))
    assert sent[-1] == {"type": "websocket.close", "code": 1008}
