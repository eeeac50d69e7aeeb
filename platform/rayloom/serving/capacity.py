"""How much each deployment takes in, and what it runs on: options of Ray Serve."""

from __future__ import annotations

import math
from typing import Any

from rayloom.config import ServingConfig
from rayloom.serving.scaling import autoscaling_options

_UNBOUNDED = 100_000
_SURGE_PERCENT = 25
"""Replicas of a new version that are opened beside the old ones, one at least: none of these goes before one is up."""


def model_options(config: ServingConfig) -> dict[str, Any]:
    """Of a single model's replicas."""
    return {
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "autoscaling_config": autoscaling_options(config.autoscaling),
        "max_ongoing_requests": _held_by_replica(config),
        "max_queued_requests": config.max_queued_requests or 1,  # Serve knows no 0; the ingress counts exactly
        # Often, so that a lost replica is noticed, and replaced, soon.
        "health_check_period_s": 2.0,
        # A replica that is replaced first finishes what it has begun.
        "graceful_shutdown_timeout_s": config.request_timeout_s,
        "max_surge_percent": _SURGE_PERCENT,
    }


def ingress_options(config: ServingConfig) -> dict[str, Any]:
    """Of what answers HTTP. Calls are refused there, with a reason; so it takes in more than may be in flight."""
    most = most_in_flight(config)
    return {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _UNBOUNDED if most is None else 2 * most + 64,
        "graceful_shutdown_timeout_s": config.request_timeout_s,
        "max_surge_percent": _SURGE_PERCENT,
    }


def most_in_flight(config: ServingConfig) -> int | None:
    """Calls that all replicas of all models hold, and those that may wait for one; None for no bound."""
    bounds = [_most_of_one(single) for single in config.served().values()]
    known = [bound for bound in bounds if bound is not None]
    return sum(known) if len(known) == len(bounds) else None


def num_cpus(config: ServingConfig) -> int:
    """CPUs for all replicas, and for one of each model that is opened beside them when its version changes."""
    each = [single.num_cpus * (single.autoscaling.max_replicas + 1) for single in config.served().values()]
    return max(1, math.ceil(sum(each)))


def _most_of_one(config: ServingConfig) -> int | None:
    if config.max_queued_requests < 0:
        return None
    return config.max_queued_requests + config.autoscaling.max_replicas * _calls_per_replica(config)


def _held_by_replica(config: ServingConfig) -> int:
    """Calls that a replica takes in.

    With keys it is all of them: owners take turns in the engine, while calls before it wait in the order of arrival, so
    that a flood would be before everybody else.
    """
    if config.keys_file is None:
        return _calls_per_replica(config)
    most = _most_of_one(config)
    return _UNBOUNDED if most is None else most


def _calls_per_replica(config: ServingConfig) -> int:
    """As many waiting in the engine as it runs at once; never fewer than autoscaling aims at."""
    return max(2 * config.max_batch_size, math.ceil(config.autoscaling.target_ongoing_requests))
