"""Which version is served: over a real registry, and with deployments that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rayloom.config import ServingConfig
from rayloom.errors import RegistryError
from rayloom.registry import Registry
from rayloom.serving.calls import Following
from rayloom.serving.following import (
    Follower,
    OvertakenError,
    ReplicasLostError,
    Source,
    Sources,
    follows_stage,
    pinned,
    source_of,
)
from tests.unit.registry.publishing import publish_artifact


class World:
    """Stages that change, and deployments that may fail."""

    def __init__(self) -> None:
        self.stages = {"qa": Source("/1", version="qa@1"), "fr": Source("/7", version="fr@7")}
        self.broken: set[str] = set()
        self.unreadable: dict[str, Exception] = {}
        self.on_the_way: Callable[[], None] = lambda: None
        self.error: type[Exception] = RuntimeError
        self.served: Sources = {**self.stages, "other": Source("/x")}
        self.deployed: list[list[str]] = []
        self.now = 0.0
        self.follower = Follower(self.served, ("qa", "fr"), self.look, self.deploy, clock=lambda: self.now)

    def look(self, model: str) -> Source:
        if model in self.unreadable:
            raise self.unreadable[model]
        return self.stages[model]

    def deploy(self, sources: Sources, is_wanted: Callable[[], bool]) -> None:
        self.deployed.append([source.artifact for source in sources.values()])
        self.on_the_way()
        if not is_wanted():
            raise OvertakenError("app")
        if self.broken & {source.artifact for source in sources.values()}:
            raise self.error("the deployment failed")
        self.served = dict(sources)

    def hold(self, model: str, version: int) -> None:
        self.stages[model] = Source(f"/{version}", version=f"{model}@{version}")
        self.follower.step()


def test_nothing_is_deployed_while_nothing_changes() -> None:
    world = World()
    world.follower.step()
    assert world.deployed == []
    assert world.follower.states() == {"qa": Following("qa@1"), "fr": Following("fr@7")}


def test_a_new_version_is_served_and_a_rollback_is_another_change() -> None:
    world = World()
    world.hold("qa", 2)
    assert world.served["qa"].artifact == "/2"
    assert world.served["other"].artifact == "/x"
    world.hold("qa", 1)
    assert world.served["qa"].artifact == "/1"
    assert world.deployed == [["/2", "/7", "/x"], ["/1", "/7", "/x"]]


def test_a_version_that_does_not_open_is_told_of_and_tried_once() -> None:
    world = World()
    world.broken = {"/2"}
    world.hold("qa", 2)
    assert world.deployed == [["/2", "/7", "/x"], ["/1", "/7", "/x"]]
    world.follower.step()
    assert len(world.deployed) == 2
    state = world.follower.states()["qa"]
    assert state.version == "qa@1"
    assert state.failure == "qa@2 could not be opened: RuntimeError"
    world.hold("fr", 8)  # others are not held up
    assert world.served["fr"].artifact == "/8"
    assert world.served["qa"].artifact == "/1"
    world.hold("qa", 3)
    assert world.follower.states()["qa"] == Following("qa@3")


def test_a_failure_is_forgotten_when_the_stage_goes_back_and_tried_again_when_it_returns() -> None:
    world = World()
    world.broken = {"/2"}
    world.hold("qa", 2)
    world.hold("qa", 1)
    assert world.follower.states()["qa"] == Following("qa@1")
    world.broken = set()
    world.hold("qa", 2)
    assert world.served["qa"].artifact == "/2"


def test_what_may_have_been_the_clusters_fault_is_tried_again_later() -> None:
    world = World()
    world.broken = {"/2"}
    world.hold("qa", 2)
    world.broken = set()
    world.now = 599.0
    world.follower.step()
    assert world.served["qa"].artifact == "/1"
    world.now = 601.0
    world.follower.step()
    assert world.served["qa"].artifact == "/2"
    assert world.follower.states()["qa"] == Following("qa@2")


def test_a_version_whose_replicas_were_lost_is_tried_again_soon_and_then_later() -> None:
    world = World()
    world.broken, world.error = {"/2"}, ReplicasLostError
    tried_at = []
    world.hold("qa", 2)
    for world.now in range(1, 1800):
        before = len(world.deployed)
        world.follower.step()
        if len(world.deployed) > before:
            tried_at.append(world.now)
    assert tried_at == [15, 45, 105, 225, 465, 945, 1545]  # after 15 s, 30 s, …, and every ten minutes in the end
    world.broken = set()
    world.now = 2200.0
    world.follower.step()
    assert world.follower.states()["qa"] == Following("qa@2")
    world.hold("qa", 1)
    world.broken = {"/2"}
    world.hold("qa", 2)
    world.now += 15.0
    world.broken = set()
    world.follower.step()  # what was lost before it was served once does not count any more
    assert world.served["qa"].artifact == "/2"


@pytest.mark.parametrize("error", [RegistryError("locked"), OSError("away"), ValueError("not JSON")])
def test_a_stage_that_cannot_be_read_is_told_of_and_keeps_no_other_model_back(error: Exception) -> None:
    world = World()
    world.unreadable["qa"] = error
    world.hold("fr", 8)
    assert world.deployed == [["/1", "/8", "/x"]]
    states = world.follower.states()
    assert states["fr"] == Following("fr@8")
    message = f"the registry does not say what to serve: {type(error).__name__}"
    assert states["qa"] == Following("qa@1", message)
    world.unreadable.clear()
    world.follower.step()
    assert world.follower.states()["qa"] == Following("qa@1")


def test_a_version_that_cannot_be_brought_in_is_left_when_its_stage_holds_another() -> None:
    world = World()

    def roll_back() -> None:
        world.on_the_way = lambda: None
        world.stages["qa"] = Source("/1", version="qa@1")

    world.on_the_way = roll_back
    world.hold("qa", 2)
    assert world.deployed == [["/2", "/7", "/x"], ["/1", "/7", "/x"]]  # and what was there is the goal again
    assert world.follower.states()["qa"] == Following("qa@1")
    world.hold("qa", 2)
    assert world.follower.states()["qa"] == Following("qa@2")


def test_a_registry_that_falls_silent_on_the_way_ends_no_change() -> None:
    world = World()
    world.on_the_way = lambda: world.unreadable.update(qa=OSError("away"))
    world.hold("qa", 2)
    assert world.served["qa"].artifact == "/2"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    registry = Registry()
    for number in (1, 2):
        registry.register("qa", publish_artifact(tmp_path, f"qa{number}"))
    registry.nominate("qa@1")
    return registry


def test_stages_are_looked_up_and_versions_stay(registry: Registry) -> None:
    staged = ServingConfig(artifact="qa@candidate", adapters={"fr": "qa@1"})
    fixed = ServingConfig(artifact="qa@1")
    assert follows_stage(staged)
    assert not follows_stage(fixed)
    assert not follows_stage(staged.model_copy(update={"follow_stages_s": None}))
    assert follows_stage(fixed.model_copy(update={"adapters": {"fr": "qa@candidate"}}))
    before = source_of(staged)
    assert before.artifact == before.adapters["fr"] == registry.resolve("qa@1")
    assert before.version == "qa@1, qa@1"
    registry.nominate("qa@2")
    after = source_of(staged)
    assert after.artifact == registry.resolve("qa@2")
    ready = pinned(staged, after)
    assert (ready.artifact, ready.adapters) == (after.artifact, dict(before.adapters))
    assert source_of(fixed).artifact == before.artifact


def test_paths_and_hub_names_are_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of(ServingConfig(artifact="org/model")) == Source("org/model", {}, "model")
    assert not follows_stage(ServingConfig(artifact="runs/qa/artifact"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qa@production").mkdir()
    assert not follows_stage(ServingConfig(artifact="qa@production"))


def test_an_unknown_version_is_named(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="qa"):
        source_of(ServingConfig(artifact="qa@production"))
