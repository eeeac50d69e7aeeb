"""Where rank 0 of a run posts its news, and the driver takes them.

Imports nothing heavy: the board lives in a process of its own, which should start at once.
"""

from __future__ import annotations

import asyncio

import ray


@ray.remote(num_cpus=0)
class Board:
    """Holds pickled events until they are taken; it never looks into them."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._num_taken = self._num_dealt_with = 0
        self._again = asyncio.Condition()

    async def post(self, event: bytes) -> None:
        """Add one."""
        self._events.append(event)

    async def take(self) -> list[bytes]:
        """Take all there are. Whoever takes has dealt with what was taken before."""
        async with self._again:
            self._num_dealt_with = self._num_taken
            self._again.notify_all()
        events, self._events = self._events, []
        self._num_taken += len(events)
        return events

    async def settled(self) -> None:
        """Wait until all that is posted now has been taken and dealt with."""
        posted = self._num_taken + len(self._events)
        async with self._again:
            await self._again.wait_for(lambda: self._num_dealt_with >= posted)
