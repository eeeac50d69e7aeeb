"""From no replica to two by tokens, and back to none."""

from __future__ import annotations

import time

import httpx
import pytest

from rayloom.config import ServingConfig
from rayloom.serving import serving
from tests.serving_load import quick_models, under_load

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def wait_for(url: str, status: str, num_replicas: int) -> None:
    deadline = time.monotonic() + 120.0
    while True:
        state = httpx.get(f"{url}/health", timeout=30.0).json()
        if (state.get("status"), state.get("num_replicas")) == (status, num_replicas):
            return
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def test_replicas_come_with_tokens_and_go_without() -> None:
    values = {
        "artifact": "x",
        "num_cpus": 0.1,
        "autoscaling": {
            "min_replicas": 0,
            "initial_replicas": 0,
            "max_replicas": 2,
            "target_tokens": 300,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
            "look_back_period_s": 11,
        },
    }
    with serving(ServingConfig.model_validate(values), open_model=quick_models()) as url:
        wait_for(url, "idle", 0)
        with under_load(url, None, num_clients=5, seconds=1.0) as load:  # five times 100 tokens
            wait_for(url, "ok", 2)
        assert set(load.statuses) == {200}, load.problems
        wait_for(url, "idle", 0)
        with under_load(url, None, num_clients=1, seconds=1.0) as load:
            wait_for(url, "ok", 1)
        assert set(load.statuses) == {200}, load.problems
