from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from rayloom.config import ServingConfig
from rayloom.serving.limits import Limits
from rayloom.serving.observing.opening import open_observer
from rayloom.serving.observing.traces import ENDPOINT_VARIABLES
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ours = logging.getLogger("rayloom")
    handlers, propagate, level = ours.handlers, ours.propagate, ours.level
    yield
    for handler in ours.handlers:
        handler.close()
    ours.handlers, ours.propagate = handlers, propagate
    ours.setLevel(level)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"log_file": "requests.log"}, "absolute path"),
        ({"log_format": "xml"}, "'text' or 'json'"),
        ({"traces_endpoint": "collector:4318"}, "http://localhost:4318"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServingConfig(artifact="x", **values)


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_config_decides_what_is_logged_and_where(tmp_path: Path, log_prompts: bool) -> None:
    path = tmp_path / "requests.log"
    config = ServingConfig(artifact="x", log_format="json", log_file=str(path), log_prompts=log_prompts)
    observer = open_observer(config)
    assert observer.spans is None
    limits = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)
    with TestClient(create_app(FakeBackend(), limits, observer=observer)) as client:
        response = client.post("/generate", json={"prompt": "a"})
    assert "x-request-id" not in response.headers  # Serve's proxy sets it
    (line,) = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert ("prompts" in line) is log_prompts
