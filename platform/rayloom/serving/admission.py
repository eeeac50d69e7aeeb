"""How many calls may be in flight, and when one that was turned away should come back."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from rayloom.serving.calls import Problem

_WINDOW_S = 30.0
_MOST_S = 60
_UNKNOWN_S = 1
"""Where nothing has ended yet that a guess could be made from."""
_SHARE = 8
"""An owner may hold so many times what is free. So one alone gets 8/9 of all, and others still find room."""


class Admission:
    """Counts calls in flight, and those that have ended lately.

    Args:
        most: Calls in flight beyond which others are turned away; None for no bound.
        clock: Seconds; injected by tests.
    """

    def __init__(self, most: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._ended: deque[float] = deque()
        self._held: Counter[str] = Counter()
        self.num_in_flight = 0

    def enter(self, num_calls: int = 1, owner: str = "") -> Problem | None:
        """Let calls in that belong together, or say why not. Whoever is let in has to `leave`.

        Args:
            num_calls: How many they are.
            owner: Whose they are; nobody's calls share no bound.
        """
        if self._most is not None:
            free = self._most - self.num_in_flight
            if num_calls > free or (owner and self._held[owner] + num_calls > _SHARE * free):
                return self.overloaded()
        self.num_in_flight += num_calls
        self._held[owner] += num_calls
        return None

    def leave(self, num_calls: int = 1, owner: str = "") -> None:
        """Calls that were let in have ended, however they did."""
        self.num_in_flight -= num_calls
        self._held[owner] -= num_calls
        if not self._held[owner]:
            del self._held[owner]
        now = self._clock()
        self._ended.extend([now] * num_calls)
        self._forget(now)

    def overloaded(self) -> Problem:
        """What a call is told that is one too many."""
        message = f"too many calls are waiting ({self.num_in_flight}); try again later"
        return Problem(429, "overloaded", message, retry_after_s=self.retry_after_s())

    def retry_after_s(self) -> int:
        """Seconds in which all calls that are in flight will have ended, if they go on ending as fast as lately."""
        now = self._clock()
        self._forget(now)
        if not self._ended:
            return _UNKNOWN_S
        per_second = len(self._ended) / max(now - self._ended[0], 1.0)
        return min(max(math.ceil(self.num_in_flight / per_second), 1), _MOST_S)

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0] < now - _WINDOW_S:
            self._ended.popleft()
