"""How much each key may ask for in a minute: token buckets, in the memory of one ingress process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from rayloom.serving.calls import Problem
from rayloom.serving.keys import ApiKey

_MINUTE_S = 60.0


class Bucket:
    """Fills evenly up to what one minute allows. It may be emptied below zero: that is paid back before more is given.

    Args:
        per_minute: What flows in, and what it holds at most. It begins full.
        now_s: The time.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute, self._level, self._at_s = per_minute, float(per_minute), now_s

    def allow(self, per_minute: int, now_s: float) -> None:
        """What flows in from now on."""
        self._fill(now_s)
        self._per_minute, self._level = per_minute, min(self._level, float(per_minute))

    def wait_s(self, amount: int, now_s: float) -> float:
        """Seconds until it holds an amount; or is full, for an amount that it never holds."""
        self._fill(now_s)
        missing = min(amount, self._per_minute) - self._level
        return max(missing, 0.0) * _MINUTE_S / self._per_minute

    def take(self, amount: int, now_s: float) -> None:
        """Take an amount, whether it is there or not."""
        self._fill(now_s)
        self._level -= amount

    def _fill(self, now_s: float) -> None:
        flowed = (now_s - self._at_s) * self._per_minute / _MINUTE_S
        self._level, self._at_s = min(self._level + flowed, float(self._per_minute)), now_s


@dataclass
class _Buckets:
    requests: Bucket | None = None
    tokens: Bucket | None = None


class Rates:
    """What the keys have used lately.

    Args:
        clock: Seconds; injected by tests.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, _Buckets] = {}

    def refusal(self, key: ApiKey, num_calls: int) -> Problem | None:
        """Why a key has to wait with calls that belong together, and for how long."""
        now_s = self._clock()
        used = self._buckets(key, now_s)
        waits = {
            f"{key.requests_per_minute} requests": used.requests.wait_s(num_calls, now_s) if used.requests else 0.0,
            f"{key.tokens_per_minute} tokens": used.tokens.wait_s(1, now_s) if used.tokens else 0.0,
        }
        what, wait_s = max(waits.items(), key=lambda each: each[1])
        if wait_s <= 0:
            return None
        retry_after_s = max(math.ceil(wait_s), 1)
        message = f"the key '{key.name}' has {what} per minute; try again in {retry_after_s} s"
        return Problem(429, "rate_limited", message, retry_after_s=retry_after_s)

    def charge_calls(self, key: ApiKey, num_calls: int) -> None:
        """Calls have been let in."""
        now_s = self._clock()
        if requests := self._buckets(key, now_s).requests:
            requests.take(num_calls, now_s)

    def charge_tokens(self, key: ApiKey, num_tokens: int) -> None:
        """Tokens have been read or written."""
        now_s = self._clock()
        if tokens := self._buckets(key, now_s).tokens:
            tokens.take(num_tokens, now_s)

    def _buckets(self, key: ApiKey, now_s: float) -> _Buckets:
        """By name, so that what has been used outlives a change of the key's limits."""
        used = self._used.setdefault(key.name, _Buckets())
        used.requests = _allowing(used.requests, key.requests_per_minute, now_s)
        used.tokens = _allowing(used.tokens, key.tokens_per_minute, now_s)
        return used


def _allowing(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now_s)
    bucket.allow(per_minute, now_s)
    return bucket
