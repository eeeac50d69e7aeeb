from __future__ import annotations

from typing import Any

from rayloom.config import AutoscalingConfig, ServingConfig
from rayloom.serving.app import application


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
