"""Where rank 0 of a run posts its news, and the driver takes them.

Imports nothing heavy: the board lives in a process of its own, which should start at once.
"""

from __future__ import annotations

import ray


@ray.remote(num_cpus=0)
class Board:
    """Holds pickled events until they are taken; it never looks into them."""

    def __init__(self) -> None:
        self._events: list[bytes] = []

    def post(self, event: bytes) -> None:
        """Add one."""
        self._events.append(event)

    def take(self) -> list[bytes]:
        """Take all there are."""
        events, self._events = self._events, []
        return events
