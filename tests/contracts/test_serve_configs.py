"""Every file in serve_configs/ is one that `serve deploy` takes, without a key that we or Ray do not know."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from rayloom.config import ServingConfig, validate
from rayloom.errors import ConfigError
from rayloom.serving.app import build

FOLDER = Path(__file__).parents[2] / "serve_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def unknown_keys(values: dict[str, Any]) -> set[str]:
    """Keys that Ray's schema would drop without a word (it is forward-compatible)."""

    def missing(schema: type[BaseModel], part: dict[str, Any]) -> set[str]:
        return set(part) - set(schema.model_fields)

    unknown = missing(ServeDeploySchema, values) | missing(HTTPOptionsSchema, values["http_options"])
    return unknown.union(*(missing(ServeApplicationSchema, app) for app in values["applications"]))


def test_there_is_one_for_each_family_and_for_several_models() -> None:
    names = ["ab_test.yaml", "gpt_neo.yaml", "llama_lora.yaml", "multi_model.yaml", "t5_qa.yaml"]
    assert [path.name for path in FILES] == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_and_we_take_the_file(path: Path) -> None:
    values = read(path)
    schema = ServeDeploySchema.model_validate(values)
    assert unknown_keys(values) == set()
    for app in schema.applications:
        assert app.import_path == "rayloom.serving.app:build"
        config = validate(ServingConfig, app.args, path=path)
        assert all(single.artifact for single in config.served().values())
        ingress = build(app.args)._bound_deployment
        assert ingress.name == "Http"
        assert len(ingress.init_args[0]) == len(config.served())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_listens_beyond_this_machine(path: Path) -> None:
    assert read(path)["http_options"]["host"] == "127.0.0.1"


def test_a_wrong_argument_is_refused_by_name() -> None:
    args = copy.deepcopy(read(FOLDER / "t5_qa.yaml")["applications"][0]["args"])
    with pytest.raises(ConfigError, match=r"max_batchsize.*did you mean 'max_batch_size'"):
        build({**args, "max_batchsize": 4})
    with pytest.raises(ConfigError, match=r"min_replicas 3 exceeds max_replicas 2"):
        build({**args, "autoscaling": {"min_replicas": 3, "max_replicas": 2}})
    with pytest.raises(ConfigError, match=r"num_beam.*did you mean 'num_beams'"):
        build({**args, "generation": {"num_beam": 4}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"qa": {"artifact": "x", "artefact": "x"}}}, r"models\.qa\.artefact.*did you mean 'artifact'"),
        ({"models": {"qa": {"artifact": "x", "cors_origins": []}}}, r"cors_origins.*unknown key"),
        ({"routes": {"ab": {"split": {"qa": 1.0}, "splits": {}}}}, r"routes\.ab\.splits.*did you mean 'split'"),
        ({"artifact": "x"}, r"give an artifact, or models"),
    ],
)
def test_a_wrong_key_of_one_of_several_models_is_refused(change: dict[str, Any], message: str) -> None:
    args = read(FOLDER / "multi_model.yaml")["applications"][0]["args"]
    with pytest.raises(ConfigError, match=message):
        build({**args, **change})


def test_serves_own_keys_are_checked_by_serve_and_dropped_ones_by_us() -> None:
    values = read(FOLDER / "ab_test.yaml")
    values["applications"][0]["route_prefx"] = "/"
    assert unknown_keys(values) == {"route_prefx"}
