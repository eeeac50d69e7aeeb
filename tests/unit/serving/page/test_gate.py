"""In front of the page: keys, and only those of Gradio's routes that the page needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.page.gate import COOKIE, Gate, add_login, secret_in
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)


def behind(access: Access | None) -> FastAPI:
    """The service with something in the place of Gradio that answers everything."""
    app = create_app(FakeBackend(), LIMITS, access=access)
    if access is not None:
        add_login(app, access)
    app.add_middleware(Gate, access=access)
    app.mount("/ui", PlainTextResponse("inside"))
    return app


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.yaml")


@pytest.fixture
def secret(store: KeyStore) -> str:
    return store.create("app", Terms())


@pytest.fixture
def client(tmp_path: Path, secret: str) -> Iterator[TestClient]:
    with TestClient(behind(Access(LiveKeys(tmp_path / "keys.yaml"))), follow_redirects=False) as client:
        yield client


def test_without_keys_the_page_is_open() -> None:
    with TestClient(behind(None)) as client:
        assert client.get("/ui/").text == "inside"
        assert client.get("/ui/gradio_api/queue/data").text == "inside"
        assert client.get("/health").status_code == 200


def test_browsers_find_no_icon_and_no_error(client: TestClient) -> None:
    assert client.get("/favicon.ico").status_code == 204


def test_only_what_the_page_needs_is_reached() -> None:
    with TestClient(behind(None)) as client:
        for path in (
            "/ui/gradio_api/upload",
            "/ui/gradio_api/file=/etc/passwd",
            "/ui/gradio_api/file/etc/passwd",
            "/ui/gradio_api/proxy=http://example.org",
            "/ui/gradio_api/run/predict",
            "/ui/gradio_api/call/predict",
            "/ui/gradio_api/component_server",
            "/ui/gradio_api/vibe-code",
            "/ui/monitoring",
            "/ui/config/../gradio_api/upload",
            "/uix",
        ):
            for method in ("GET", "POST"):
                assert client.request(method, path).status_code == 404, path


def test_everything_that_leaves_the_page_says_that_nothing_may_come_from_elsewhere() -> None:
    with TestClient(behind(None)) as client:
        for path in ("/ui/", "/ui/nothing"):
            policy = client.get(path).headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "http" not in policy
        assert "content-security-policy" not in client.get("/health").headers


def test_with_keys_nobody_comes_in_without_one(client: TestClient) -> None:
    response = client.get("/ui/")
    assert (response.status_code, response.headers["location"]) == (303, "/ui/login")
    for path in ("/ui/config", "/ui/gradio_api/queue/join", "/ui/static/x.js", "/ui/assets/x.js"):
        assert client.post(path).status_code == 401
    assert "API key" in client.get("/ui/login").text


def test_a_good_key_opens_and_signing_out_closes(client: TestClient, secret: str) -> None:
    response = client.post("/ui/login", data={"key": f" {secret} "})
    assert (response.status_code, response.headers["location"]) == (303, "/ui/")
    cookie = response.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui"))
    assert client.get("/ui/").text == "inside"
    assert client.get("/ui/gradio_api/queue/data").text == "inside"
    assert client.get("/ui/logout").status_code == 303
    assert client.get("/ui/").status_code == 303


def test_the_cookie_opens_nothing_but_the_page(client: TestClient, secret: str) -> None:
    client.post("/ui/login", data={"key": secret})
    value = client.cookies[COOKIE]
    assert client.post("/generate", json={"prompt": "a"}, headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401


@pytest.mark.parametrize("given", ["", "rl-wrong", "<script>alert(1)</script>", "\N{SNOWMAN}", "x" * 5000])
def test_a_bad_key_is_told_so(client: TestClient, given: str) -> None:
    response = client.post("/ui/login", data={"key": given})
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    assert "<script>" not in response.text
    assert 'class="error"' in response.text


def test_a_revoked_key_is_out_and_a_key_without_the_scope_never_in(
    client: TestClient, secret: str, store: KeyStore, tmp_path: Path
) -> None:
    scraper = store.create("prometheus", Terms(scopes=("metrics",)))
    with TestClient(behind(Access(LiveKeys(tmp_path / "keys.yaml"))), follow_redirects=False) as fresh:
        assert fresh.post("/ui/login", data={"key": scraper}).status_code == 403
        fresh.post("/ui/login", data={"key": secret})
        assert fresh.get("/ui/").status_code == 200
        cookies = dict(fresh.cookies)
    store.revoke("app")
    with TestClient(behind(Access(LiveKeys(tmp_path / "keys.yaml"))), follow_redirects=False) as after:
        after.cookies.update(cookies)
        assert after.get("/ui/").status_code == 303


@pytest.mark.parametrize("cookie", ["", "a=b", f"{COOKIE}=%%%", f"{COOKIE}=w7ZzZQ", f"{COOKIE}=//79", ";;;=;",
                                    f'{COOKIE}="\\351"'])  # fmt: skip
def test_a_broken_cookie_is_none(cookie: str) -> None:
    assert secret_in(cookie) is None
