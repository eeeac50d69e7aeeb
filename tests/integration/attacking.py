"""What the attacks on a service share: raw sockets, somebody who uses it meanwhile, and what must be as before."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from rayloom.generation import TextGenerator

PROMPT = "The river flows slowly past"
NORMAL = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
_PATIENCE_S = 10.0
"""Of somebody who uses the service during an attack. A normal answer takes milliseconds; machines may be busy."""


@dataclass(frozen=True)
class Service:
    """A running server and its model."""

    url: str
    generator: TextGenerator

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30.0)

    def send(self, pieces: Iterable[bytes]) -> bytes:
        """See `send`."""
        return send(self.address, pieces)

    def post(self, body: bytes | dict[str, Any], path: str = "/v1/completions", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx.Client(timeout=60.0) as client:
            return client.post(
                f"{self.url}{path}", content=content, headers={"Content-Type": "application/json", **headers}
            )

    def check_unharmed(self) -> None:
        """It answers as ever, and nobody holds a place in the engine."""
        wait_for(lambda: leaks(self.generator) == {})
        answer = self.post(NORMAL)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
        wait_for(lambda: leaks(self.generator) == {})


def leaks(generator: TextGenerator) -> dict[str, int]:
    """Whatever an engine without requests should not have."""
    service: Any = generator.generator.service
    engine, scheduler = service._engine, service._engine._scheduler
    found = {
        "tickets": len(service._tickets) + len(service._arrivals) + len(service._leavers),
        "groups": len(engine._groups),
        "timed": len(engine._timed),
        "prompts": len(engine._memories),
        "running": scheduler.num_running,
        "waiting": scheduler.num_waiting,
        "slots": engine.limits.max_sequences - scheduler.num_free_slots,
        "blocks": engine.limits.num_blocks - scheduler.num_free_blocks,
    }
    return {name: count for name, count in found.items() if count}


@contextlib.contextmanager
def bystander(service: Service) -> Iterator[None]:
    """Somebody asks normal questions all the time, and gets each answer."""
    done, failures = threading.Event(), list[str]()
    num_answers = 0

    def use() -> None:
        nonlocal num_answers
        with httpx.Client(base_url=service.url, timeout=_PATIENCE_S) as client:
            while not done.wait(0.01):
                try:
                    answer = client.post("/v1/completions", json=NORMAL)
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                    return
                if answer.status_code != 200:
                    failures.append(answer.text)
                num_answers += 1

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    try:
        yield
        wait_for(lambda: num_answers > 0 or bool(failures))
    finally:
        done.set()
        thread.join(30.0)
    assert not failures, failures[0]
    service.check_unharmed()


@contextlib.contextmanager
def flat_memory(most_mib: int) -> Iterator[None]:
    """This process, server and attacker together, keeps no more than that of what was sent."""
    before = psutil.Process().memory_info().rss
    yield
    kept_mib = (psutil.Process().memory_info().rss - before) / 2**20
    assert kept_mib < most_mib, f"{kept_mib:.0f} MiB are still there"


def send(address: tuple[str, int], pieces: Iterable[bytes]) -> bytes:
    """Send as much as a server takes; everything that it answers before it closes the connection."""
    with socket.create_connection(address, timeout=30.0) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    """All that comes before the other side closes."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def statuses(answer: bytes) -> list[int]:
    """Of the responses in what came; none where the connection was just closed."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
