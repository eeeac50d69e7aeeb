"""Several models on a real Serve: names, arms, lost replicas, and changes under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayloom.config import ServingConfig
from rayloom.errors import RegistryError
from rayloom.registry import Registry
from rayloom.serving import application, serving
from rayloom.serving.deploying import redeploy
from tests.serving_load import quick_models, under_load
from tests.unit.evaluation import gated
from tests.unit.registry.publishing import publish_artifact

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

APP = "rayloom"  # as the launcher names it


def config_of(**artifacts: str) -> ServingConfig:
    """Two models, a split between them, and a shadow; `a` has two replicas, and two adapters of which one fits."""
    models: dict[str, Any] = {name: {"artifact": place} for name, place in {"a": "a1", "b": "b1", **artifacts}.items()}
    models["a"] |= {"adapters": {"x": "ax", "y": "ay"}, "max_adapters": 1}
    models["a"] |= {"autoscaling": {"min_replicas": 2, "max_replicas": 2}}
    values = {
        "models": models,
        "routes": {"ab": {"split": {"a": 0.5, "b": 0.5}, "shadow": "b"}},
        "num_cpus": 0.1,
        "request_timeout_s": 60,
    }
    return ServingConfig.model_validate(values)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(config_of(), open_model=quick_models()) as url:
        yield url


def ask(url: str, model: str | None, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/generate", json={"prompt": "0", "model": model, **more}, timeout=60.0)


def told(url: str, model: str) -> tuple[str, int, int]:
    """Artifact, process and seed that an answer comes from."""
    artifact, pid, seed = ask(url, model).json()["text"].split()
    return artifact, int(pid), int(seed)


def processes(url: str, model: str, num: int) -> set[int]:
    """The replicas of a model, once so many have been seen."""
    seen: set[int] = set()
    deadline = time.monotonic() + 30.0
    while len(seen) < num:
        assert time.monotonic() < deadline, f"only {len(seen)} replicas answer"
        seen.add(told(url, model)[1])
    return seen


def test_models_are_found_by_their_names(url: str) -> None:
    assert [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]] == ["a", "x", "y", "b", "ab"]
    assert (told(url, "a")[0], told(url, "b")[0]) == ("a1", "b1")
    assert ask(url, "../a").status_code == 404
    assert ask(url, None).status_code == 400
    health = httpx.get(f"{url}/health").json()
    assert {name: state["num_replicas"] for name, state in health["models"].items()} == {"a": 2, "b": 1}


def num_held(url: str) -> int:
    return int(httpx.post(f"{url}/detokenize", json={"tokens": [], "model": "b"}).json()["prompt"])


def wait_until_free(url: str) -> None:
    deadline = time.monotonic() + 20.0
    while num_held(url):
        assert time.monotonic() < deadline, "the call was not dropped"
        time.sleep(0.05)


def test_calls_that_nobody_waits_for_are_dropped(url: str) -> None:
    body = {"model": "b", "stream": True}
    with httpx.stream("POST", f"{url}/generate", json={**body, "prompt": "3"}) as response:
        assert '"2:' in response.read().decode()
    wait_until_free(url)
    for path in ("/generate", "/v1/completions"):
        with httpx.stream("POST", f"{url}{path}", json={**body, "prompt": "200"}) as response:
            lines = response.iter_lines()  # httpx closes the response with its iterator
            assert '"0:' in next(lines)
            assert num_held(url) == 1
        wait_until_free(url)
    headers = {"X-Request-Timeout": "0.5"}
    late = httpx.post(f"{url}/generate", json={**body, "prompt": "200"}, headers=headers)
    assert late.text.count('"type":"timeout"') == 1
    wait_until_free(url)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/generate", json={"model": "b", "prompt": "20"}, timeout=httpx.Timeout(10.0, read=0.5))
    wait_until_free(url)


def test_a_user_stays_on_an_arm(url: str) -> None:
    arms = {user: {ask(url, "ab", user=user).headers["x-rayloom-arm"] for _ in range(2)} for user in "uvwxyz"}
    assert all(len(each) == 1 for each in arms.values())
    assert set.union(*arms.values()) == {"a", "b"}
    assert "x-rayloom-arm" not in ask(url, "a").headers


def test_calls_prefer_the_replica_that_has_their_adapter(url: str) -> None:
    """Each of two replicas has room for one of two adapters: soon each adapter has a replica of its own."""
    seen: list[tuple[int, int]] = []
    deadline = time.monotonic() + 30.0
    while len(seen) < 10 or len(set(seen[-10:])) > 1 or seen[-1][0] == seen[-1][1]:
        assert time.monotonic() < deadline, seen[-20:]
        seen.append((told(url, "x")[1], told(url, "y")[1]))
        time.sleep(0.05)  # what replicas have is told every tenth of a second


def test_a_lost_replica_loses_no_answer_and_ends_streams_that_were_begun(url: str) -> None:
    victims = processes(url, "a", 2)
    with under_load(url, "a", seconds=0.3) as load:
        body = {"prompt": "200", "model": "a", "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60.0) as response:
            lines = response.iter_lines()
            victim = int(next(lines).split(":")[-1].split()[0])
            assert victim in victims
            os.kill(victim, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert "in the middle of the answer" in rest[-1]
        assert "[DONE]" not in rest[-1]
        time.sleep(1.0)
    assert set(load.statuses) == {200}, load.problems
    assert processes(url, "a", 2) != victims


def stream_of(url: str, model: str, num: int, into: list[str]) -> threading.Thread:
    """A stream that is read while other things happen; returns once it has begun."""
    begun = threading.Event()

    def read() -> None:
        body = {"prompt": str(num), "model": model, "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60.0) as response:
            for line in response.iter_lines():
                into.append(line)
                begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(30.0)
    return thread


def test_a_rolling_update_fails_no_request_and_finishes_streams(url: str) -> None:
    untouched, lines = processes(url, "a", 2), list[str]()
    stream = stream_of(url, "b", 60, lines)
    with under_load(url, "b") as load:
        redeploy(application(config_of(b="b2"), open_model=quick_models()), APP)
        assert told(url, "b")[0] == "b2"
    stream.join()
    assert set(load.statuses) == {200}, load.problems
    artifacts = [text.split()[0] for text in load.texts]
    assert set(artifacts) == {"b1", "b2"}
    assert '"59:' in "".join(lines)
    assert '"b1"' in "".join(lines)  # the old version wrote it to its end
    assert lines[-2] == "data: [DONE]"
    assert processes(url, "a", 2) == untouched


def wait_for(url: str, **expected: Any) -> None:
    deadline = time.monotonic() + 120.0
    while (following := httpx.get(f"{url}/health").json().get("following")) != {**expected}:
        assert time.monotonic() < deadline, following
        time.sleep(0.1)


def registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Three versions; what the gate wants of them is ROUGE-L alone."""
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(folder / "registry"))
    registry = Registry()
    for name in ("one", "two", "broken"):
        registry.register("qa", publish_artifact(folder, name), copy=False)
    registry.set_gate("qa", gated.gate(0.2))
    return registry


def follow(url: str, stage: str) -> None:
    """The application that is there makes way for another under the same address, which follows a stage."""
    config = ServingConfig(artifact=f"qa@{stage}", num_cpus=0.1, follow_stages_s=0.3)
    redeploy(application(config, open_model=quick_models()), APP)
    wait_for(url, version="qa@1")


def test_production_is_followed_through_a_promotion_and_its_rollback(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registered(tmp_path, monkeypatch)
    for version, rouge in enumerate((0.5, 0.6, 0.1), start=1):
        gated.measure(registry, version, rouge)
    gated.promote(registry, 1)
    follow(url, "production")
    with under_load(url, None) as load:
        gated.promote(registry, 2)
        wait_for(url, version="qa@2")
        assert told(url, "quick")[0].endswith("two")
        with pytest.raises(RegistryError, match="does not pass the gate"):
            gated.promote(registry, 3)
        registry.rollback("qa", expected=2)
        wait_for(url, version="qa@1")
        assert told(url, "quick")[0].endswith("one")
    assert set(load.statuses) == {200}, load.problems
    assert not any("broken" in text for text in load.texts)


@pytest.mark.slow
def test_a_version_that_does_not_open_takes_no_calls(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registered(tmp_path, monkeypatch)
    registry.nominate("qa@1")
    follow(url, "candidate")
    with under_load(url, None) as load:
        registry.nominate("qa@3")
        wait_for(url, version="qa@1", failure="qa@3 could not be opened: RuntimeError")
        assert told(url, "quick")[0].endswith("one")
        registry.archive("qa@3")
        wait_for(url, version="qa@1")
        registry.nominate("qa@2")
        wait_for(url, version="qa@2")
    assert set(load.statuses) == {200}, load.problems
    assert not any("broken" in text for text in load.texts)
