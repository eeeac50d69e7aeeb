"""Scaling by tokens: the policy alone, and the load that it would be given over hours of traffic."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingConfig as ServesConfig

from rayloom.config import AutoscalingConfig
from rayloom.serving.calls import Figures
from rayloom.serving.scaling import TokenPolicy, autoscaling_options, report, steady


@dataclass
class Context:
    """As much of Serve's `AutoscalingContext` as the policy reads."""

    current_num_replicas: int = 2
    target_num_replicas: int = 2
    total_queued_requests: float = 0.0
    total_running_requests: float = 4.0
    aggregated_metrics: dict[str, dict[str, float]] = field(default_factory=dict)


def reported(*tokens: float, slots: float = 0.0, places: float = 8.0) -> dict[str, dict[str, float]]:
    names = [f"replica{number}" for number in range(len(tokens))]
    each = {"tokens": tokens, "slots": [slots] * len(tokens), "max_slots": [places] * len(tokens)}
    return {key: dict(zip(names, values, strict=True)) for key, values in each.items()}


def wanted(**values: Any) -> float:
    context: Any = Context(**values)
    return TokenPolicy(target_tokens=1000, target_slots=0.5)(context)[0]


def test_tokens_decide() -> None:
    assert wanted(aggregated_metrics=reported(900, 900)) == 2
    assert wanted(aggregated_metrics=reported(1500, 1500)) == 3
    assert wanted(aggregated_metrics=reported(5000, 5000)) == 10


def test_places_decide_where_they_run_out_first() -> None:
    assert wanted(aggregated_metrics=reported(10, 10, slots=8.0)) == 4
    assert wanted(aggregated_metrics=reported(10, 10, slots=4.0)) == 2


def test_calls_that_wait_count_as_much_as_the_others() -> None:
    metrics = reported(1000, 1000)
    assert wanted(aggregated_metrics=metrics, total_queued_requests=8.0) == 6
    assert wanted(aggregated_metrics=reported(0, 0), total_running_requests=0.0, total_queued_requests=3.0) == 3


def test_without_reports_nothing_changes() -> None:
    assert wanted(aggregated_metrics={}) == 2
    assert wanted(current_num_replicas=0, target_num_replicas=1, aggregated_metrics=reported()) == 1


def test_no_load_at_all_is_no_replica() -> None:
    assert wanted(aggregated_metrics=reported(0, 0), total_running_requests=0.0) == 0
    assert wanted(aggregated_metrics=reported(3, 0), total_running_requests=0.1) == 1


@given(st.floats(0, 50), st.integers(0, 20))
def test_what_is_aimed_at_is_enough_and_is_stable(needed: float, now: int) -> None:
    aimed = steady(needed, now)
    assert aimed >= math.floor(needed)
    assert steady(needed, aimed) == aimed
    if 0.75 * now < needed <= now:
        assert aimed == now


def test_load_that_wavers_a_little_moves_nothing() -> None:
    rng, now, changes = random.Random(0), 4, 0
    for _ in range(1000):
        aimed = steady(rng.uniform(3.1, 4.0), now)
        changes += aimed != now
        now = aimed
    assert changes == 0


def test_serve_takes_the_policy() -> None:
    config = AutoscalingConfig(min_replicas=0, target_tokens=512, target_slots=0.5, downscale_to_zero_delay_s=7)
    options = autoscaling_options(config)
    served = ServesConfig(**options)
    policy = served.policy.get_policy()(**served.policy.policy_kwargs)
    assert (policy.target_tokens, policy.target_slots) == (512, 0.5)
    assert served.downscale_to_zero_delay_s == 7
    assert set(options) <= set(ServesConfig.model_fields)
    assert "policy" not in autoscaling_options(AutoscalingConfig())


def test_what_a_replica_reports() -> None:
    figures = Figures("qa", {"num_sequences": 3, "max_sequences": 8}, tokens_in_flight=70)
    assert report(figures) == {"tokens": 70.0, "slots": 3.0, "max_slots": 8.0}
