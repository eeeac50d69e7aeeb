from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayloom.config import AutoscalingConfig, ServingConfig
from rayloom.errors import ConfigError
from rayloom.serving import app
from rayloom.serving.app import application
from rayloom.serving.keys import KeyStore, Terms


def deployments(config: ServingConfig) -> tuple[Any, Any]:
    """(ingress, model) as Serve will deploy them."""
    ingress = application(config)._bound_deployment
    return ingress, ingress.init_args[0]._bound_deployment


def test_autoscaling_and_resources_are_rays_own() -> None:
    autoscaling = AutoscalingConfig(min_replicas=0, initial_replicas=1, max_replicas=3, target_ongoing_requests=20)
    config = ServingConfig(artifact="x", num_cpus=2, num_gpus=0.5, autoscaling=autoscaling, max_queued_requests=7)
    _, model = deployments(config)
    given = model._deployment_config.autoscaling_config
    for name, value in autoscaling.model_dump().items():
        assert getattr(given, name) == value
    assert model.ray_actor_options["num_cpus"] == 2
    assert model.ray_actor_options["num_gpus"] == 0.5
    assert model.max_queued_requests == 7


def test_a_replica_holds_the_batch_it_runs_and_the_next_one() -> None:
    _, model = deployments(ServingConfig(artifact="x", max_batch_size=32))
    assert model.max_ongoing_requests == 64
    target = AutoscalingConfig(target_ongoing_requests=100)
    _, model = deployments(ServingConfig(artifact="x", max_batch_size=4, autoscaling=target))
    assert model.max_ongoing_requests == 100


def test_calls_are_refused_before_requests_are() -> None:
    config = ServingConfig(artifact="x", max_queued_requests=10, autoscaling=AutoscalingConfig(max_replicas=3))
    ingress, model = deployments(config)
    assert ingress.max_ongoing_requests > 10 + 3 * model.max_ongoing_requests
    assert ingress.ray_actor_options["num_cpus"] == 0
    unbounded, _ = deployments(config.model_copy(update={"max_queued_requests": -1}))
    assert unbounded.max_ongoing_requests > 10_000


def test_with_keys_all_calls_wait_where_owners_take_turns() -> None:
    config = ServingConfig(artifact="x", max_batch_size=4, max_queued_requests=100, keys_file="keys.yaml")
    ingress, model = deployments(config)
    assert model.max_ongoing_requests == 100 + 16
    assert ingress.max_ongoing_requests > model.max_ongoing_requests
    _, model = deployments(config.model_copy(update={"keys_file": None}))
    assert model.max_ongoing_requests == 16


def test_what_a_file_deploys_wants_keys_where_others_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("127.0.0.1", None):
        monkeypatch.setattr(app, "_address", lambda address=address: address)
        assert app._access(ServingConfig(artifact="x")) is None
    monkeypatch.setattr(app, "_address", lambda: "0.0.0.0")
    with pytest.raises(ConfigError, match="listening on 0.0.0.0"):
        app._access(ServingConfig(artifact="x"))
    assert app._access(ServingConfig(artifact="x", allow_anonymous=True)) is None
    keys_file = str(tmp_path / "keys.yaml")
    KeyStore(keys_file).create("app", Terms())
    assert app._access(ServingConfig(artifact="x", keys_file=keys_file)) is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keys_file": "k", "allow_anonymous": True}, "leave one of them out"),
        ({"cors_origins": ["example.org"]}, "https://example.org"),
        ({"cors_origins": ["https://example.org/"]}, "without a path"),
    ],
)
def test_the_door_in_the_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingConfig(artifact="x", **values)
