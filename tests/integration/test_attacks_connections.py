"""Attacks that are no requests yet: floods of headers, slow ones, bodies without an end, and what is no HTTP."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.generation import TextGenerator
from rayloom.serving.connections import BoundedProtocol
from rayloom.serving.model import TextGeneratorModel
from tests.integration.attacking import Service, bystander, flat_memory, received, statuses
from tests.integration.local_server import LIMITS, listening

MIB = 2**20
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Impatient(BoundedProtocol):
    """Gives up sooner, so that the tests need not wait."""

    headers_within_s = 0.4
    body_within_s = 1.2


@pytest.fixture(scope="module")
def service(tiny_artifact_llama: Path) -> Iterator[Service]:
    generator = TextGenerator(tiny_artifact_llama, max_batch_size=4)
    limits = dataclasses.replace(LIMITS, max_body_bytes=MIB, body_timeout_s=0.6)
    with listening(TextGeneratorModel(generator, max_time_s=60.0), limits, protocol=Impatient) as url:
        yield Service(url, generator)


def drip(service: Service, head: bytes, drop: bytes) -> bytes:
    """Send a drop again and again until the server has enough; what it answers."""
    with service.connect() as connection:
        connection.sendall(head)
        connection.settimeout(0.05)
        for _ in range(400):
            try:
                if (part := connection.recv(65536)) or not part:
                    return part
            except TimeoutError:
                pass
            except ConnectionError:
                return b""
            try:
                connection.sendall(drop)
            except ConnectionError:
                return received(connection)
        pytest.fail("the server waits for ever")


@pytest.mark.parametrize(
    ("head", "drop", "expected"),
    [
        (b"", b"", []),
        (b"GE", b"", []),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", []),
        (POST + b"X-Long: ", b"a", []),
        (POST + b"Content-Length: 100\r\n\r\n", b" ", [408]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", [408]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", [408]),
        (b"GET /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"x", [200]),
    ],
    ids=["nothing", "method", "headers", "header", "body", "chunks", "chunk extension", "body that nobody reads"],
)
def test_slow_loris(service: Service, head: bytes, drop: bytes, expected: list[int]) -> None:
    with bystander(service):
        assert statuses(drip(service, head, drop)) == expected


def test_many_slow_ones_at_once(service: Service) -> None:
    with bystander(service):
        connections = [service.connect() for _ in range(200)]
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        assert {received(connection) for connection in connections} == {b""}
        for connection in connections:
            connection.close()


def test_a_body_that_nobody_reads_ends_with_its_connection(service: Service) -> None:
    with bystander(service), service.connect() as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        done = threading.Event()

        def trickle() -> None:
            try:
                while not done.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert statuses(received(connection)) == [200]  # and then it is closed
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    ("head", "piece", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", b"X-%d: " + b"a" * 1000 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n", b"X-%d: a\r\n" * 200, 400),
        (b"GET / HTTP/1.1\r\nX-A: ", b"a" * 65536, 400),
        (b"GET /", b"a" * 65536, 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: " + b"a" * 1000 + b"\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536, 400),
    ],
    ids=["large headers", "many headers", "one endless header", "path", "trailers", "chunk extension"],
)
def test_header_floods(service: Service, head: bytes, piece: bytes, expected: int) -> None:
    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(1 + 32 * MIB // len(piece)):
            yield piece

    with bystander(service), flat_memory(64):
        assert statuses(service.send(pieces())) in ([expected], [])  # what is sent on resets the connection


def test_oversized_bodies(service: Service) -> None:
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    with bystander(service), flat_memory(64):
        assert statuses(service.send([POST + b"Content-Length: 99999999999\r\n\r\n"])) == [413]
        endless = (POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 2000)
        assert statuses(service.send(endless)) in ([413], [])
        assert statuses(service.send([POST + b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n"])) == [400]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX\x00Y: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n" * 100,
    ],
    ids=["TLS", "HTTP/2", "NUL", "length", "version", "bytes"],
)
def test_what_is_no_http(service: Service, raw: bytes) -> None:
    with bystander(service):
        assert statuses(service.send([raw])) in ([400], [])


def test_requests_in_a_row_on_one_connection_are_none_of_these(service: Service) -> None:
    request = b"GET /ready HTTP/1.1\r\nHost: x\r\n" + b"X-Trace: abc\r\n" * 100 + b"\r\n"
    close = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with bystander(service):
        assert statuses(service.send([request * 99 + close])) == [200] * 100
