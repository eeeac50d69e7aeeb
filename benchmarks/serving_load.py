"""Clients of the serving benchmark: plain asyncio, so that the load costs little of the machine that is measured."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from peers.protocol import Request

HANG_UP = "hung up"
"""What a reply says whose client did not wait for it."""


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        url: Whole.
        body: JSON.
        key: API key, if any.
        kind: For telling replies apart.
        patience_s: Seconds until the client hangs up; None for never.
    """

    url: str
    body: dict[str, Any]
    key: str | None = None
    kind: str = ""
    patience_s: float | None = None


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        kind: Of the request.
        status: HTTP status; 0 where there was none.
        seconds: Until it was whole.
        first_s: Until the first token of a stream, or `seconds`.
        tokens: Generated.
        retry_after: The header's value.
        error: What went wrong without a status.
    """

    kind: str
    status: int
    seconds: float
    first_s: float
    tokens: int = 0
    retry_after: str | None = None
    error: str | None = None


@dataclass
class Run:
    """Replies to one load, and the seconds that it took."""

    replies: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    def good(self, kind: str | None = None) -> list[Reply]:
        """Answers."""
        return [each for each in self.replies if each.status == 200 and kind in (None, each.kind)]

    @property
    def tokens_per_s(self) -> float:
        """Of all answers."""
        return sum(reply.tokens for reply in self.good()) / self.seconds

    @property
    def requests_per_s(self) -> float:
        """Answers."""
        return len(self.good()) / self.seconds

    def p95_s(self, kind: str | None = None) -> float:
        """95th percentile of the seconds that answers took."""
        return percentile([reply.seconds for reply in self.good(kind)], 95)

    def check(self) -> Run:
        """Itself, if every request was answered.

        Raises:
            SystemExit: Some were not.
        """
        bad = [reply for reply in self.replies if reply.status != 200]
        if bad:
            raise SystemExit(f"{len(bad)} of {len(self.replies)} requests failed, the first with {bad[0]}")
        return self


def completion(url: str, request: Request, *, stream: bool = False, **more: Any) -> Ask:
    """A request to `/v1/completions` of exactly so many tokens."""
    count = request.new_tokens
    body = {"prompt": request.prompt, "max_tokens": count, "min_new_tokens": count, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Ask(f"{url}/v1/completions", body, **more)


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation; NaN of nothing."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def together(asks: Sequence[Ask], *, clients: int | None = None) -> Run:
    """All requests, by so many clients (or one each) that ask one after another."""
    return asyncio.run(_timed(_by_clients(iter(asks), clients or len(asks))))


def one_by_one(asks: Sequence[Ask]) -> Run:
    """All requests, each when the one before is answered."""
    return together(asks, clients=1)


def arriving(asks: Iterable[Ask], *, per_s: float, seconds: float, seed: int = 0) -> Run:
    """Requests that come at random moments, whatever became of those before.

    Args:
        asks: As many as are needed.
        per_s: How many come per second, on average.
        seconds: For how long they come.
        seed: Of the moments.
    """
    return asyncio.run(_timed(_at_random(iter(asks), per_s, seconds, random.Random(seed))))


def side_by_side(loads: Sequence[tuple[Callable[[], Ask], int]], *, seconds: float) -> Run:
    """Several groups of clients at once, each asking one after another.

    Args:
        loads: For each group what makes its requests, and its clients.
        seconds: Afterwards no request begins.
    """

    async def run() -> list[Reply]:
        until = time.perf_counter() + seconds

        def asks(make: Callable[[], Ask]) -> Iterable[Ask]:
            while time.perf_counter() < until:
                yield make()

        groups = [_by_clients(iter(asks(make)), clients) for make, clients in loads]
        return list(itertools.chain.from_iterable(await asyncio.gather(*groups)))

    return asyncio.run(_timed(run()))


async def _timed(work: Any) -> Run:
    start = time.perf_counter()
    replies = await work
    return Run(replies, time.perf_counter() - start)


async def _by_clients(asks: Any, clients: int) -> list[Reply]:
    replies: list[Reply] = []

    async def client() -> None:
        for each in asks:
            replies.append(await ask(each))
            if replies[-1].status == 429:
                await asyncio.sleep(0.05)  # a client that does not wait would measure itself

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


async def _at_random(asks: Any, per_s: float, seconds: float, rng: random.Random) -> list[Reply]:
    until, tasks = time.perf_counter() + seconds, list[asyncio.Task[Reply]]()
    while time.perf_counter() < until:
        tasks.append(asyncio.create_task(ask(next(asks))))
        await asyncio.sleep(rng.expovariate(per_s))
    return await asyncio.gather(*tasks)


async def ask(request: Ask) -> Reply:
    """Send one request, and read its answer."""
    start = time.perf_counter()
    try:
        async with asyncio.timeout(request.patience_s):
            return await _exchange(request, start)
    except TimeoutError:
        seconds = time.perf_counter() - start
        return Reply(request.kind, 0, seconds, seconds, error=HANG_UP)
    except (OSError, ValueError, IndexError) as error:
        seconds = time.perf_counter() - start
        return Reply(request.kind, 0, seconds, seconds, error=repr(error))


async def _exchange(request: Ask, start: float) -> Reply:
    parts = urlsplit(request.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
    try:
        writer.write(_written(parts.path, request))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first_s, body = await _read(reader, start)
        seconds = time.perf_counter() - start
    finally:
        writer.close()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))}
    status = int(head.split(" ", 2)[1])
    tokens = _tokens(body) if status == 200 else 0
    return Reply(request.kind, status, seconds, first_s or seconds, tokens, headers.get("retry-after"))


def _written(path: str, request: Ask) -> bytes:
    content = json.dumps(request.body).encode()
    key = f"Authorization: Bearer {request.key}\r\n" if request.key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{key}"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _read(reader: asyncio.StreamReader, start: float) -> tuple[float | None, list[bytes]]:
    """When the first event of a stream came, and all lines."""
    first_s, lines = None, list[bytes]()
    while line := await reader.readline():
        if first_s is None and line.startswith(b"data: "):
            first_s = time.perf_counter() - start
        lines.append(line)
    return first_s, lines


def _tokens(lines: list[bytes]) -> int:
    """As the answer says: in its usage, or by listing them."""
    events = [line[6:] for line in lines if line.startswith(b"data: {")]
    whole = [line for line in lines if line.startswith(b"{")]
    last = json.loads(events[-1] if events else whole[-1])
    if "usage" in last:
        return int(last["usage"]["completion_tokens"])
    return len(last["tokens"])
