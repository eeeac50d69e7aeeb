from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayloom.config import ServingConfig
from rayloom.errors import ArtifactError, ConfigError, ServiceError
from rayloom.serving.exposure import is_loopback
from rayloom.serving.keys import KeyStore, Terms
from rayloom.serving.launcher import greeting, replica_error, serve_artifact, served_model, serving, url_of

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:rayloom:Model.initialize_and_get_metadata() (pid=1)
RuntimeError: Traceback (most recent call last):
  File "app.py", line 66, in __init__
    self._model = open_model(config)
"""


@pytest.fixture
def taken_port() -> Iterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    yield listener.getsockname()[1]
    listener.close()


def test_a_replicas_own_error_comes_back() -> None:
    error = replica_error(TRACEBACK + "rayloom.errors.ArtifactError: /x: no manifest.json\nTrain one first")
    assert type(error) is ArtifactError
    assert str(error) == "/x: no manifest.json\nTrain one first"
    assert error.exit_code == 2


@pytest.mark.parametrize("last", ["MemoryError: no room", "rayloom.errors.NoSuchError: x", "rayloom.errors.Path: x"])
def test_other_errors_keep_their_last_line(last: str) -> None:
    error = replica_error(TRACEBACK + last)
    assert type(error) is ServiceError
    assert str(error) == f"the model could not be opened: {last}"


def test_a_taken_port_is_said_before_anything_starts(taken_port: int) -> None:
    said: list[str] = []
    with pytest.raises(ServiceError, match=rf"cannot listen on 127.0.0.1:{taken_port}.*choose another --port"):
        serve_artifact(ServingConfig(artifact="x"), port=taken_port, say=said.append)
    assert not any("Warning" in text for text in said)


def test_other_addresses_than_loopback_want_keys(taken_port: int, tmp_path: Path) -> None:
    said: list[str] = []

    def serve(**options: Any) -> None:
        # An address of no interface here: refused by the operating system once it may be tried.
        config = ServingConfig(artifact="x", **options)
        serve_artifact(config, host="203.0.113.7", port=taken_port, say=said.append)

    with pytest.raises(
        ConfigError, match=r"203\.0\.113\.7 would let anyone[^$]*rayloom keys create[^$]*--allow-anonymous"
    ):
        serve()
    with (
        pytest.raises(ConfigError, match="203"),
        serving(ServingConfig(artifact="x"), host="203.0.113.7", port=taken_port),
    ):
        pass
    with pytest.raises(ConfigError, match=r"no such file[^$]*rayloom keys create"):
        serve(keys_file=str(tmp_path / "keys.yaml"))
    assert not said
    with pytest.raises(ServiceError, match="cannot listen"):
        serve(allow_anonymous=True)
    assert said[0].startswith("Warning: listening on 203.0.113.7")
    assert "no API keys" in said[0]
    said.clear()
    KeyStore(tmp_path / "keys.yaml").create("app", Terms())
    with pytest.raises(ServiceError, match="cannot listen"):
        serve(keys_file=str(tmp_path / "keys.yaml"))
    assert not any("Warning" in text for text in said)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "127.0.0.1.example")],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_greeting_shows_where_the_key_goes() -> None:
    text = greeting("http://127.0.0.1:8000", name="tiny", answers=False, asks_key=True)
    assert "export RAYLOOM_API_KEY=" in text
    assert '-H "Authorization: Bearer $RAYLOOM_API_KEY"' in text
    python = "\n".join(line.strip() for line in text.partition("  Python\n")[2].splitlines())
    compile(python, "greeting", "exec")
    assert python.startswith("import os\n")
    assert "TextGenerator(endpoint='http://127.0.0.1:8000', api_key=os.environ[\"RAYLOOM_API_KEY\"])" in python


@pytest.mark.parametrize(
    ("answers", "ask"), [(True, "/answer {'question'"), (False, "/generate {'prompt'")], ids=["qa", "lm"]
)
def test_the_greeting_can_be_pasted(answers: bool, ask: str) -> None:
    path, start = ask.replace("'", '"').split()
    text = greeting("http://127.0.0.1:8000", name="tiny", answers=answers)
    assert "http://127.0.0.1:8000/docs" in text
    assert "http://127.0.0.1:8000/v1 (model: tiny)" in text
    assert f"curl -s http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d '{start}:" in text
    python = "\n".join(line.strip() for line in text.partition("  Python\n")[2].splitlines())
    compile(python, "greeting", "exec")
    assert "TextGenerator(endpoint='http://127.0.0.1:8000')" in python


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_a_url_that_clients_can_read(host: str, url: str) -> None:
    assert url_of(host, 8000) == url
    assert httpx.URL(url_of(host, 8000)).port == 8000


def test_an_own_service_is_asked_without_the_companys_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"status": "ok", "model": {"name": "qa", "task": "summarization"}}).encode()

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            assert served_model(f"http://127.0.0.1:{server.server_port}")["name"] == "qa"
        finally:
            server.shutdown()
            thread.join()
