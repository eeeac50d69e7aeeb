"""The log of requests: one line each, and nothing in it that should not be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rayloom.errors import ConfigError
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.calls import Problem
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.limits import Limits
from rayloom.serving.observing.logs import RequestLog, write_logs
from rayloom.serving.observing.observer import Observer
from rayloom.serving.routes import create_app
from tests.fakes_serving import FakeBackend

LIMITS = Limits(request_timeout_s=5.0, max_prompt_chars=50, max_sequences=4)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    ours = logging.getLogger("rayloom")
    before = ours.handlers, ours.propagate, ours.level
    yield
    for handler in ours.handlers:
        handler.close()
    ours.handlers, ours.propagate = before[0], before[1]
    ours.setLevel(before[2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.log"


def client_of(backend: FakeBackend, log: RequestLog, access: Access | None = None) -> TestClient:
    app = create_app(backend, LIMITS, access=access, observer=Observer(log=log))
    return TestClient(app, raise_server_exceptions=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_of_json_says_who_what_how_much_and_how_long(path: Path, tmp_path: Path) -> None:
    write_logs("json", str(path))
    secret = KeyStore(tmp_path / "keys.yaml").create("app", Terms())
    with client_of(FakeBackend(), RequestLog(), Access(LiveKeys(tmp_path / "keys.yaml"))) as client:
        headers = {"Authorization": f"Bearer {secret}", "X-Request-Id": "id-7"}
        client.post("/v1/completions", json={"model": "fake-qa", "prompt": ["a b", "c"]}, headers=headers)
    (line,) = lines(path)
    assert line.pop("time").startswith("20")
    assert line.pop("duration_s") >= 0
    assert line == {
        "level": "INFO",
        "logger": "rayloom.requests",
        "message": "request",
        "request_id": "id-7",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "key": "app",
        "model": "fake-qa",
        "streamed": False,
        "calls": 2,
        "prompt_tokens": 3,
        "generated_tokens": 3,
        "queue_s": 0.25,
        "first_token_s": 0.75,
        "client_gone": False,
    }


def test_neither_prompts_answers_nor_keys_are_in_it(path: Path, tmp_path: Path) -> None:
    write_logs("json", str(path))
    secret = KeyStore(tmp_path / "keys.yaml").create("app", Terms())
    with client_of(FakeBackend(), RequestLog(), Access(LiveKeys(tmp_path / "keys.yaml"))) as client:
        good, bad = {"Authorization": f"Bearer {secret}"}, {"Authorization": f"Bearer {secret}x"}
        for headers in (good, bad):
            client.post("/generate", json={"prompt": "whisper", "stream": True}, headers=headers)
            client.post("/answer", json={"question": "whisper", "context": "whisper"}, headers=headers)
            client.post("/generate", json={"prompt": "whisper", "whisper": 1}, headers=headers)
            client.get("/whisper?whisper=1", headers=headers)
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 8
    assert "whisper" not in text.lower()
    assert secret not in text


def test_prompts_where_they_are_asked_for(path: Path) -> None:
    write_logs("json", str(path))
    with client_of(FakeBackend(), RequestLog(shows_prompts=True)) as client:
        client.post("/answer", json={"question": "why?", "context": "früh"})
        messages = [{"role": "user", "content": "hi"}]
        client.post("/v1/chat/completions", json={"model": "fake-qa", "messages": messages})
    assert [line["prompts"] for line in lines(path)] == [
        [{"text": "why?", "context": "früh"}],
        [{"messages": messages}],
    ]


def test_what_goes_wrong_says_why(path: Path) -> None:
    write_logs("json", str(path))
    backend = FakeBackend(outcome=Problem(429, "overloaded", "m"))
    with client_of(backend, RequestLog()) as client:
        client.post("/generate", json={"prompt": "a"})
        backend.outcome = Problem(500, "internal", "m")
        client.post("/generate", json={"prompt": "a"})
    assert [(each["level"], each["status"], each["reason"]) for each in lines(path)] == [
        ("INFO", 429, "overloaded"),
        ("WARNING", 500, "internal"),
    ]


def test_probes_are_not_worth_a_line_while_all_is_well(path: Path) -> None:
    write_logs("json", str(path))
    with client_of(FakeBackend(), RequestLog()) as client:
        for probe in ("/health", "/ready", "/metrics"):
            assert client.get(probe).status_code == 200
        client.post("/metrics")
    assert [line["status"] for line in lines(path)] == [405]


def test_a_line_of_text_is_one_line_whatever_a_client_sends(path: Path) -> None:
    write_logs("text", str(path))
    with client_of(FakeBackend(), RequestLog(shows_prompts=True)) as client:
        client.post("/generate", json={"prompt": "a\nFAKE status=200"}, headers={"X-Request-Id": 'x" status=1'})
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert " INFO rayloom.requests: request " in line
    assert ' request_id="x__status=1" ' in line
    assert ' status=200 ' in line  # fmt: skip
    assert r'"a\nFAKE status=200"' in line


def test_a_log_that_was_moved_away_goes_on_in_a_new_file(path: Path) -> None:
    write_logs("json", str(path))
    with client_of(FakeBackend(), RequestLog()) as client:
        client.post("/generate", json={"prompt": "a"})
        path.rename(path.with_suffix(".1"))
        client.post("/generate", json={"prompt": "a"})
    assert len(lines(path)) == len(lines(path.with_suffix(".1"))) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_file: .*nowhere.* cannot be written"):
        write_logs("json", str(tmp_path / "nowhere" / "log"))


def test_stderr_where_no_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_logs("json", None)
    logging.getLogger("rayloom.serving").error("broken", exc_info=ValueError("why"))
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["level"]) == ("broken", "ERROR")
    assert "ValueError: why" in line["exc_info"]
