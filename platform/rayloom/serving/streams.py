"""Answers on their way to a client: several calls in one stream, and what is pending sent together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from rayloom.serving.calls import Event, Part, Problem

logger = logging.getLogger(__name__)


class Tagged(NamedTuple):
    """An event, and the number of the call that it belongs to."""

    number: int
    event: Event


Inbox = asyncio.Queue[Tagged | None]


async def gathered(streams: Sequence[AsyncGenerator[Event]], timeout_s: float) -> AsyncGenerator[list[Tagged]]:
    """What several calls tell, in lists: all that has come while the last list was dealt with.

    A client that reads slowly so gets fewer, larger pieces. A problem of one call ends all; it is the last event.
    Closing the generator closes all streams.

    Args:
        streams: One for each call.
        timeout_s: Seconds until calls that are not done end with a problem.
    """
    inbox: Inbox = asyncio.Queue()
    deadline = asyncio.get_running_loop().time() + timeout_s
    pumps = [asyncio.create_task(_pump(*each, inbox, deadline, timeout_s)) for each in enumerate(streams)]
    num_open = len(pumps)
    try:
        while num_open:
            arrived = [await inbox.get()]
            while not inbox.empty():
                arrived.append(inbox.get_nowait())
            num_open -= arrived.count(None)
            told, is_over = _up_to_a_problem(each for each in arrived if each is not None)
            if told:
                yield joined(told)
            if is_over:
                return
    finally:
        for pump in pumps:
            pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # they are cancelled, whether this may wait for it or not
            await asyncio.gather(*pumps, return_exceptions=True)


def joined(events: Sequence[Tagged]) -> list[Tagged]:
    """The same events with the parts of each answer put together, where its first part stood."""
    places: dict[tuple[int, int], int] = {}
    kept: list[Tagged] = []
    for number, event in events:
        if isinstance(event, Part) and (place := places.get((number, event.index))) is not None:
            before = kept[place].event
            assert isinstance(before, Part)
            kept[place] = Tagged(number, _sum(before, event))
            continue
        if isinstance(event, Part):
            places[number, event.index] = len(kept)
        kept.append(Tagged(number, event))
    return kept


def _sum(first: Part, second: Part) -> Part:
    return replace(
        second,
        text=first.text + second.text,
        num_tokens=first.num_tokens + second.num_tokens,
        tokens=first.tokens + second.tokens,
    )


def _up_to_a_problem(events: Iterable[Tagged]) -> tuple[list[Tagged], bool]:
    told: list[Tagged] = []
    for each in events:
        told.append(each)
        if isinstance(each.event, Problem):
            return told, True
    return told, False


async def _pump(number: int, events: AsyncGenerator[Event], inbox: Inbox, deadline: float, timeout_s: float) -> None:
    try:
        async with asyncio.timeout_at(deadline), aclosing(events):
            async for event in events:
                inbox.put_nowait(Tagged(number, event))
    except TimeoutError:
        inbox.put_nowait(Tagged(number, late(timeout_s)))
    except Exception as error:
        logger.error("a stream failed", exc_info=error)
        inbox.put_nowait(Tagged(number, Problem(500, "internal", "the server failed; its log has the details")))
    finally:
        inbox.put_nowait(None)


def late(timeout_s: float) -> Problem:
    """What a call is told that has no answer in time."""
    return Problem(504, "timeout", f"no answer within {timeout_s:g} s; ask for fewer tokens")
