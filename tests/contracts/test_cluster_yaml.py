"""cluster.yaml is one that `ray up` takes, scales GPU workers, and keeps Ray's token check on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rayloom.serving.connections import guard_proxy

PATH = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    values = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


@pytest.fixture(scope="module")
def filled(written: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults for the provider filled in, as `ray up` does before it checks."""
    filled: dict[str, Any] = prepare_config(copy.deepcopy(written))
    return filled


def test_ray_takes_it(filled: dict[str, Any]) -> None:
    validate_config(filled)


def test_rays_check_would_notice_a_mistake(filled: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**filled, "max_worker": 3})
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config({**filled, "head_node_type": "no_such_node"})


def test_gpu_workers_scale_from_zero(filled: dict[str, Any]) -> None:
    head = filled["head_node_type"]
    workers = {name: node for name, node in filled["available_node_types"].items() if name != head}
    assert set(workers) == {"gpu_worker"}
    assert workers["gpu_worker"]["min_workers"] == 0
    assert workers["gpu_worker"]["max_workers"] == filled["max_workers"] > 0
    assert workers["gpu_worker"]["node_config"]["InstanceType"].startswith("g5.")


def test_every_node_runs_the_ray_of_the_tests(written: dict[str, Any]) -> None:
    assert written["docker"]["image"].startswith(f"rayproject/ray:{ray.__version__}-py311-")


def test_the_token_check_is_on_and_the_dashboard_is_not_public(written: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in written["docker"]["run_options"]
    assert written["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*written["head_start_ray_commands"], *written["worker_start_ray_commands"]]
    assert any("--dashboard-host=127.0.0.1" in command for command in starts)
    assert not any("0.0.0.0" in command for command in starts)


def test_serves_proxies_are_guarded(written: dict[str, Any]) -> None:
    name = f"{guard_proxy.__module__}.{guard_proxy.__qualname__}"
    assert f"--env RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={name}" in written["docker"]["run_options"]
