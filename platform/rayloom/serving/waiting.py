"""Waiting for work as long as somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

_T = TypeVar("_T")


class ClientGoneError(Exception):
    """The client has closed its connection."""


async def unless_gone(request: Request, work: Awaitable[_T], timeout_s: float) -> _T:
    """Wait for work as long as the request's client does.

    Raises:
        ClientGoneError: It has gone away. The work is cancelled.
        TimeoutError: It takes longer than that. The work is cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise ClientGoneError if gone in done else TimeoutError
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
