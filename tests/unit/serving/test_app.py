from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayloom.config import AutoscalingConfig, ServedModelConfig, ServingConfig
from rayloom.errors import ConfigError
from rayloom.registry import Registry
from rayloom.serving import app
from rayloom.serving.app import application
from rayloom.serving.capacity import most_in_flight
from rayloom.serving.deploying import Rollout
from rayloom.serving.following import Source
from rayloom.serving.keys import KeyStore, Terms
from tests.unit.registry.publishing import publish_artifact


def deployments(config: ServingConfig) -> tuple[Any, Any]:
    """(ingress, model) as Serve will deploy them; the first model of several."""
    ingress = application(config)._bound_deployment
    return ingress, next(iter(ingress.init_args[0].values()))._bound_deployment


def test_autoscaling_and_resources_are_rays_own() -> None:
    autoscaling = AutoscalingConfig(min_replicas=0, initial_replicas=1, max_replicas=3, target_ongoing_requests=20)
    config = ServingConfig(artifact="x", num_cpus=2, num_gpus=0.5, autoscaling=autoscaling, max_queued_requests=7)
    _, model = deployments(config)
    given = model._deployment_config.autoscaling_config
    for name, value in autoscaling.model_dump(exclude={"target_tokens", "target_slots"}).items():
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


def versions(config: ServingConfig, rollout: Rollout | None = None) -> dict[str, str]:
    """Version of every deployment."""
    ingress = application(config, rollout=rollout)._bound_deployment
    follow = ingress.init_args[2]
    found = [ingress, *(model._bound_deployment for model in ingress.init_args[0].values())]
    return {each.name: each.version for each in [*found, *([follow._bound_deployment] if follow else [])]}


TWO = ServingConfig.model_validate({"models": {"a": {"artifact": "x"}, "b": {"artifact": "y", "num_cpus": 2}}})


def test_each_model_has_replicas_of_its_own() -> None:
    ingress = application(TWO)._bound_deployment
    models = [model._bound_deployment for model in ingress.init_args[0].values()]
    assert [(each.name, each.ray_actor_options["num_cpus"]) for each in models] == [("Model-a", 1), ("Model-b", 2)]
    assert [each.init_args[0].name for each in models] == ["a", "b"]
    assert all(each._deployment_config.max_surge_percent > 0 for each in [ingress, *models])


def test_only_what_has_changed_gets_another_version() -> None:
    before = versions(TWO)
    assert versions(TWO) == before
    changed = TWO.model_copy(update={"models": {**TWO.models, "b": ServedModelConfig(artifact="z", num_cpus=2)}})
    after = versions(changed)
    assert after["Model-a"] == before["Model-a"]
    assert after["Model-b"] != before["Model-b"]
    other_door = versions(TWO.model_copy(update={"cors_origins": ("https://example.org",)}))
    assert {name for name in before if before[name] != other_door[name]} == {"Http"}


def test_another_artifact_in_the_same_folder_is_another_version(tmp_path: Path) -> None:
    config = ServingConfig(artifact=str(tmp_path))
    manifest = tmp_path / "manifest.json"
    manifest.write_text("1")
    before = versions(config)
    assert versions(config) == before
    manifest.write_text("2")
    assert versions(config)["Model"] != before["Model"]


def test_what_serve_gave_a_version_keeps_it_until_it_changes() -> None:
    initial = {"a": Source("x"), "b": Source("y")}
    same = versions(TWO, Rollout(initial, initial, base="serves"))
    assert set(same.values()) == {"serves"}
    changed = versions(TWO, Rollout(initial, {**initial, "b": Source("z")}, base="serves"))
    assert changed.pop("Model-b") != "serves"
    assert set(changed.values()) == {"serves"}


def test_stages_are_followed_by_a_deployment_that_stays_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    registry = Registry()
    for number in (1, 2):
        registry.register("qa", publish_artifact(tmp_path, f"qa{number}"))
    registry.nominate("qa@1")
    config = ServingConfig.model_validate({"models": {"a": {"artifact": "qa@candidate"}, "b": {"artifact": "y"}}})
    before = versions(config)
    assert set(before) == {"Http", "Model-a", "Model-b", "Follow"}
    registry.nominate("qa@2")
    after = versions(config)
    assert {name for name in before if before[name] != after[name]} == {"Model-a"}
    assert set(versions(config.model_copy(update={"follow_stages_s": None}))) == {"Http", "Model-a", "Model-b"}


def test_a_flood_on_one_model_leaves_room_for_others() -> None:
    single = ServingConfig(artifact="x", max_batch_size=4, max_queued_requests=10)
    both = ServingConfig.model_validate(
        {"models": {"a": {"artifact": "x"}, "b": {"artifact": "y"}}, "max_batch_size": 4, "max_queued_requests": 10}
    )
    assert most_in_flight(both) == 2 * (most_in_flight(single) or 0)
