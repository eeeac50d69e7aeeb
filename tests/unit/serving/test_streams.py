"""Streams of several calls, clients that are slow, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rayloom.serving.calls import Call, Event, Part, Problem, Started, Token
from rayloom.serving.limits import Limits
from rayloom.serving.routes import create_app
from rayloom.serving.streams import Tagged, gathered, joined
from tests.fakes_serving import FakeBackend, FakeModel

STARTED = Started("m", "fp", 1)


def token(text: str) -> Token:
    return Token(0, text.encode(), 0, -1.0)


def test_parts_of_one_answer_are_put_together_and_others_left_apart() -> None:
    events = [
        Tagged(0, STARTED),
        Tagged(0, Part(0, "a", 1, (token("a"),))),
        Tagged(1, STARTED),
        Tagged(0, Part(1, "x", 1)),
        Tagged(1, Part(0, "z", 1)),
        Tagged(0, Part(0, "b", 2, (token("b"),), finish_reason="stop")),
    ]
    assert joined(events) == [
        Tagged(0, STARTED),
        Tagged(0, Part(0, "ab", 3, (token("a"), token("b")), finish_reason="stop")),
        Tagged(1, STARTED),
        Tagged(0, Part(1, "x", 1)),
        Tagged(1, Part(0, "z", 1)),
    ]


def test_a_slow_reader_gets_what_has_come_meanwhile_at_once() -> None:
    told = asyncio.Event()

    async def events() -> AsyncGenerator[Event]:
        yield STARTED
        yield Part(0, "first", 1)
        await told.wait()
        for _ in range(50):
            yield Part(0, ".", 1)

    async def read() -> list[list[Tagged]]:
        lists = gathered([events()], 5.0)
        first = await anext(lists)
        told.set()
        for _ in range(5):  # the reader is busy: the others go on
            await asyncio.sleep(0)
        return [first, *[each async for each in lists]]

    first, *rest = asyncio.run(read())
    assert [each.event for each in first] == [STARTED, Part(0, "first", 1)]
    assert [each.event for each in rest[0]] == [Part(0, "." * 50, 50)]


@pytest.mark.parametrize("failure", ["error", "problem", "time"])
def test_a_problem_of_one_call_ends_all(failure: str) -> None:
    closed: list[int] = []

    async def events(number: int) -> AsyncGenerator[Event]:
        try:
            yield STARTED
            if number == 0 and failure == "problem":
                yield Problem(400, "invalid_request", "no")
            if number == 0 and failure == "error":
                raise RuntimeError("secret detail")
            await asyncio.Event().wait()
        finally:
            closed.append(number)

    async def read() -> list[Tagged]:
        streams = [events(number) for number in range(3)]
        return [each async for told in gathered(streams, 0.05 if failure == "time" else 30.0) for each in told]

    *_, last = asyncio.run(read())
    assert isinstance(last.event, Problem)
    assert last.event.status == {"error": 500, "problem": 400, "time": 504}[failure]
    assert "secret" not in last.event.message
    assert sorted(closed) == [0, 1, 2]


class Client:
    """An ASGI client that can go away in the middle of an answer."""

    def __init__(self, path: str, body: bytes) -> None:
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        self._body: bytes | None = body
        self.gone = asyncio.Event()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.put_nowait(message)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_call(path: str, stream: bool) -> None:
    backend = FakeBackend(delay_s=0.0 if stream else 30.0)
    app = create_app(backend, Limits(30.0, 50, 4))
    body = b'{"prompt": "one hang two", "stream": %s}' % str(stream).lower().encode()

    async def leave() -> None:
        client = Client(path, body)
        task = asyncio.create_task(app(client.scope, client.receive, client.send))  # type: ignore[arg-type]
        if stream:
            assert (await client.sent.get())["status"] == 200
            assert b"ONE" in (await client.sent.get())["body"]
        while not backend.num_running:
            await asyncio.sleep(0)
        client.gone.set()
        await asyncio.wait_for(task, 5.0)
        assert (backend.num_running, backend.num_cancelled) == (0, 1)

    asyncio.run(leave())


class Lines(FakeModel):
    """Writes what some programs take for the end of a line."""

    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\rh日"

    async def stream(self, call: Call) -> AsyncGenerator[Started | Part]:
        yield STARTED
        yield Part(0, self.text, 1, finish_reason="stop")


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_an_event_is_one_line_whatever_a_client_takes_for_the_end_of_one(path: str) -> None:
    with TestClient(create_app(FakeBackend(Lines()), Limits(30.0, 50, 4))) as client:
        sent = client.post(path, json={"prompt": "x", "stream": True}).text
    lines = [line for line in sent.splitlines() if line]  # as httpx's iter_lines, and so our own client, reads them
    assert all(line.startswith("data: ") for line in lines), lines
    first = json.loads(lines[0].removeprefix("data: "))
    assert (first if path == "/generate" else first["choices"][0])["text"] == Lines.text
    assert "日" in sent
