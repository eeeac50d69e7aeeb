from __future__ import annotations

import itertools
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rayloom.serving.keys import ApiKey, hash_of
from rayloom.serving.rates import Bucket, Rates


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_key(name: str = "app", requests: int | None = None, tokens: int | None = None) -> ApiKey:
    return ApiKey(
        name=name,
        sha256=hash_of(name.encode()),
        created=datetime.now(UTC),
        requests_per_minute=requests,
        tokens_per_minute=tokens,
    )


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(1, 2000)), max_size=50),
)
def test_no_window_gives_more_than_a_minute_and_its_own_share(per_minute: int, asked: list[tuple[float, int]]) -> None:
    now_s, bucket, given_at = 0.0, Bucket(per_minute, 0.0), list[tuple[float, int]]()
    for pause_s, amount in asked:
        now_s += pause_s
        wait_s = bucket.wait_s(amount, now_s)
        assert wait_s >= 0
        if wait_s == 0:
            bucket.take(amount, now_s)
            given_at.append((now_s, amount))
        else:
            ready = Bucket(per_minute, 0.0)
            vars(ready).update(vars(bucket))
            assert ready.wait_s(amount, now_s + wait_s) < 1e-6  # it is told when to come back
    for place, (start_s, _) in enumerate(given_at):
        for end in range(place, len(given_at)):
            # The last may overdraw: that is paid back before anything more is given.
            taken = sum(amount for _, amount in given_at[place:end])
            assert taken <= per_minute * (1 + (given_at[end][0] - start_s) / 60) + 1e-6


def test_requests_are_counted_and_come_back() -> None:
    clock = Clock()
    rates, key = Rates(clock=clock), make_key(requests=6)
    for _ in range(6):
        assert rates.refusal(key, 1) is None
        rates.charge_calls(key, 1)
    refused = rates.refusal(key, 1)
    assert refused is not None
    assert (refused.status, refused.type, refused.retry_after_s) == (429, "rate_limited", 10)
    assert refused.message == "the key 'app' has 6 requests per minute; try again in 10 s"
    clock.now_s += 10
    assert rates.refusal(key, 1) is None
    assert rates.refusal(key, 2) is not None
    assert rates.refusal(make_key("other", requests=6), 6) is None


def test_more_prompts_than_a_minute_allows_are_let_in_when_nothing_is_used() -> None:
    clock = Clock()
    rates, key = Rates(clock=clock), make_key(requests=6)
    assert rates.refusal(key, 12) is None
    rates.charge_calls(key, 12)
    refused = rates.refusal(key, 1)
    assert refused is not None
    assert refused.retry_after_s == 70


def test_tokens_are_charged_afterwards_and_paid_back() -> None:
    clock = Clock()
    rates, key = Rates(clock=clock), make_key(tokens=60)
    assert rates.refusal(key, 1) is None
    rates.charge_tokens(key, 100)
    refused = rates.refusal(key, 1)
    assert refused is not None
    assert refused.retry_after_s == 41
    assert "60 tokens per minute" in refused.message
    clock.now_s += 41
    assert rates.refusal(key, 1) is None


def test_new_limits_do_not_forget_what_was_used() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    rates.charge_calls(make_key(requests=6), 6)
    assert rates.refusal(make_key(requests=60), 1) is not None
    assert rates.refusal(make_key(), 1000) is None


def test_the_first_request_is_let_in_however_fast_the_clock_runs() -> None:
    ticks = itertools.count(1, 0.001)
    rates, key = Rates(clock=lambda: next(ticks)), make_key(requests=1, tokens=1)
    assert rates.refusal(key, 1) is None
