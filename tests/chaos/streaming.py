"""Clients that read streams, and tell how these end."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx

_PAUSE_S = 0.5


@contextlib.contextmanager
def reading_streams(url: str, ends: Counter[str], **body: Any) -> Iterator[None]:
    """A client that reads one stream after the other while the context lasts."""
    is_over = threading.Event()

    def read() -> None:
        with httpx.Client(timeout=120.0) as client:
            while not is_over.wait(_PAUSE_S):
                ends[_end_of_one(client, url, body)] += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _end_of_one(client: httpx.Client, url: str, body: dict[str, Any]) -> str:
    last = ""
    try:
        with client.stream("POST", f"{url}/generate", json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                last = line or last
    except httpx.HTTPError:
        return "torn"
    if response.status_code != 200:
        return f"refused with {response.status_code}"
    if last == "data: [DONE]":
        return "whole"
    return "ended by an error event" if '"error"' in last else "torn"
