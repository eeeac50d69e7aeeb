from __future__ import annotations

from dataclasses import dataclass

from rayloom.serving.admission import Admission


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_calls_that_belong_together_come_in_together_or_not_at_all() -> None:
    admission = Admission(3)
    assert admission.enter(2) is None
    refused = admission.enter(2)
    assert refused is not None
    assert (refused.status, refused.type) == (429, "overloaded")
    assert admission.enter(1) is None
    admission.leave(3)
    assert admission.enter(3) is None


def test_without_a_bound_all_come_in() -> None:
    admission = Admission(None)
    assert admission.enter(10**6) is None


def test_retry_after_follows_from_queue_and_throughput() -> None:
    clock = Clock()
    admission = Admission(100, clock=clock)
    assert admission.retry_after_s() == 1  # nothing is known yet
    admission.enter(100)
    for _ in range(20):  # two calls a second
        clock.now += 0.5
        admission.leave()
        admission.enter()
    assert 45 <= admission.retry_after_s() <= 55
    admission.leave(90)
    assert admission.retry_after_s() <= 2


def test_what_is_long_ago_does_not_count() -> None:
    clock = Clock()
    admission = Admission(100, clock=clock)
    admission.enter(50)
    admission.leave(40)
    clock.now = 100.0
    assert admission.retry_after_s() == 1
    admission.leave(1)
    clock.now = 110.0
    assert admission.retry_after_s() == 60  # one in ten seconds, nine to come: bounded
