"""Clients that hang up at any moment leave nothing behind: no place in the engine, none in the queue.

`make test-serving-soak` has 10,000 of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.model import TextGeneratorModel
from tests.integration.attacking import PROMPT, Service, flat_memory, leaks, statuses, wait_for
from tests.integration.local_server import LIMITS, listening

NUM_AT_ONCE = 24
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 40, "min_new_tokens": 40, "temperature": 0}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 30, "min_new_tokens": 30, "temperature": 0, "stream": True}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "min_new_tokens": 20, "n": 3, "seed": 1, "stream": True}),
    ("/v1/completions", {"prompt": [PROMPT, "Who built", "a cat sat"], "max_tokens": 12, "temperature": 0}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "num_beams": 3, "temperature": 0}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "echo": True, "logprobs": 2, "stream": True, "seed": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 30, "stream": True,
                              "temperature": 0}),
    ("/generate", {"prompt": "Why?", "regex": "[a-z ]{4,12}", "max_new_tokens": 16, "stream": True}),
    ("/answer", {"question": "Who built the mill?", "context": "The miller.", "max_new_tokens": 20}),
    ("/generate", {"prompt": "Why?", "max_new_tokens": 0}),
]  # fmt: skip
"""Of all ways through the server; the last one is refused."""


@pytest.fixture(scope="module")
def service(tiny_artifact_llama: Path) -> Iterator[Service]:
    generator = TextGenerator(tiny_artifact_llama, max_batch_size=6)
    limits = dataclasses.replace(LIMITS, max_in_flight=NUM_AT_ONCE)
    with listening(TextGeneratorModel(generator, max_time_s=60.0), limits) as url:
        yield Service(url, generator)


async def visit(service: Service, rng: random.Random, seen: Counter[str]) -> None:
    """One connection: it sends something, perhaps waits, perhaps reads, and is gone."""
    path, body = rng.choice(BODIES)
    content = json.dumps(body).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content
    way = rng.choice(["request", "wait", "wait", "read", "read", "read", "stay"])
    reader, writer = await asyncio.open_connection(*service.address)
    try:
        if way == "request":
            request = request[: rng.randrange(len(request))]
        for place in range(0, len(request), step := rng.choice([40, len(request) + 1])):
            writer.write(request[place : place + step])
            await writer.drain()
        if way == "wait":
            await asyncio.sleep(rng.expovariate(1 / 0.02))
        if way == "read":
            await reader.read(rng.randrange(1, 4000))
            await asyncio.sleep(rng.choice([0.0, 0.0, rng.expovariate(1 / 0.02)]))
        if way == "stay":
            (status,) = statuses(await reader.read())
            assert status < 500
            seen[f"status {status}"] += 1
    except ConnectionError:
        seen["reset by the server"] += 1
    hang_up(writer, rng)
    seen[way] += 1


def hang_up(writer: asyncio.StreamWriter, rng: random.Random) -> None:
    """Politely, by half, or as a cable that is cut."""
    connection: socket.socket = writer.get_extra_info("socket")
    way = rng.randrange(3)
    if way == 0 and not writer.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way == 1 and writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
    writer.transport.abort() if way == 0 else writer.close()


async def visit_all(service: Service, count: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    rngs = iter([random.Random(f"{seed} {place}") for place in range(count)])

    async def one_after_another() -> None:
        for rng in rngs:
            await visit(service, rng, seen)

    await asyncio.gather(*(one_after_another() for _ in range(NUM_AT_ONCE)))
    return seen


def check_nothing_is_left(service: Service) -> None:
    """All places are there: those of the engine, and all that may be in flight can be taken at once."""
    wait_for(lambda: leaks(service.generator) == {})
    service.generator.generator.service._engine._scheduler.check()  # type: ignore[attr-defined]
    asked = {"prompt": [PROMPT] * NUM_AT_ONCE, "max_tokens": 2, "temperature": 0}
    wait_for(lambda: httpx.post(f"{service.url}/v1/completions", json=asked, timeout=60.0).status_code == 200)
    too_many = {"prompt": [PROMPT] * (NUM_AT_ONCE + 1), "max_tokens": 2, "temperature": 0}
    assert httpx.post(f"{service.url}/v1/completions", json=too_many, timeout=60.0).status_code == 429
    wait_for(lambda: leaks(service.generator) == {})


def run(service: Service, count: int) -> Counter[str]:
    with flat_memory(128):
        seen = asyncio.run(visit_all(service, count, seed=count))
        check_nothing_is_left(service)
    assert seen["status 200"] > 0
    assert {name for name in seen if name.startswith("status")} <= {"status 200", "status 422", "status 429"}
    return seen


def test_a_hundred_disconnects(service: Service) -> None:
    seen = run(service, 120)
    assert all(seen[way] for way in ("request", "wait", "read", "stay"))


@pytest.mark.slow
def test_ten_thousand_disconnects(service: Service) -> None:
    seen = run(service, 10_000)
    sys.stdout.write(f"{dict(seen)}\n")
