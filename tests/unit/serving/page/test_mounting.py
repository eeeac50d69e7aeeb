"""The real page, as Gradio serves it beside the API; how it works in a browser is for tests/browser."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from rayloom.errors import ConfigError
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.page.mounting import check_page, mount_page
from rayloom.serving.page.settings import CONTROLS
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """Of a service with keys and a page, and a key."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    secret = KeyStore(path).create("app", Terms())
    access = Access(LiveKeys(path))
    app = create_app(FakeBackend(), LIMITS, access=access)
    mount_page(app, access)
    with TestClient(app, follow_redirects=False) as client:
        yield client, secret


def test_the_page_has_everything_and_fetches_nothing_from_elsewhere(client: tuple[TestClient, str]) -> None:
    visitor, secret = client
    assert visitor.get("/ui/").headers["location"] == "/ui/login"
    assert visitor.post("/ui/login", data={"key": secret}).headers["location"] == "/ui/"
    page = visitor.get("/ui/")
    assert page.status_code == 200
    fetched = re.findall(r"""<(?:script|link|img|iframe)[^>]*\s(?:src|href)\s*=\s*["']([^"']+)""", page.text)
    assert fetched
    assert [url for url in fetched if re.match(r"(?:https?:)?//", url)] == []
    config = visitor.get("/ui/config").json()
    labels = {component["props"].get("label") for component in config["components"]}
    assert {control.label for control in CONTROLS} <= labels
    assert [url for url in config.get("stylesheets") or [] if "//" in url] == []
    assert config["analytics_enabled"] is False
    visitor.get("/ui/logout")


def test_the_api_is_as_it_was(client: tuple[TestClient, str]) -> None:
    visitor, secret = client
    assert visitor.get("/health").status_code == 200
    assert visitor.post("/generate", json={"prompt": "a"}).status_code == 401
    good = {"Authorization": f"Bearer {secret}"}
    assert visitor.post("/generate", json={"prompt": "a"}, headers=good).json()["text"] == "A"
    assert not any(path.startswith("/ui") for path in visitor.get("/openapi.json").json()["paths"])


def test_without_the_extra_the_config_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    check_page()
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"page: .*pip install 'rayloom\[page\]'"):
        check_page()
