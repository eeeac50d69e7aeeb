"""Replicas that die every few seconds under load, while their models go from version to version (`make test-chaos`).

The variable ``RAYLOOM_CHAOS_S`` says for how many seconds; 300 where it is not there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayloom.generation import TextGenerator
from rayloom.registry import Registry
from rayloom.serving import serving
from tests.chaos.killing import killing
from tests.chaos.models import config_of_both, open_either, register_both
from tests.chaos.report import REPORTS, Change, Report, Tally
from tests.chaos.streaming import reading_streams
from tests.serving_load import Load, under_load

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SECONDS = float(os.environ.get("RAYLOOM_CHAOS_S", "300"))
KILL_EVERY_S = {"quick": 8.0, "engine": 45.0}
UPDATE_EVERY_S = 10.0
"""From the end of one to the beginning of the next."""
SAMPLED = {"do_sample": True, "seed": 7, "max_new_tokens": 12}


def test_killed_replicas_and_updates_fail_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLOOM_REGISTRY", str(tmp_path / "registry"))
    registry = Registry()
    artifacts = register_both(registry, tmp_path)
    report = Report(models={"quick": Tally(), "engine": Tally()})
    REPORTS.append(report)
    with serving(config_of_both(), open_model=open_either()) as url:
        loads = run(url, registry, report)
        told = {name: set(texts_of(load)) for name, load in loads.items()}
        read_repeats(url, report)
    for name, tally in report.models.items():
        assert tally.num_failed == 0, tally.problems
        assert set(tally.streams) <= {"whole", "ended by an error event"}
        assert tally.num_killed >= SECONDS / KILL_EVERY_S[name] / 2
        assert tally.updates_s, f"{name} was never brought to another version"
    assert told["quick"] == {"quick-1", "quick-2"}
    assert told["engine"] == {TextGenerator(place).generate("0.1", **SAMPLED) for place in artifacts["engine"]}


def run(url: str, registry: Registry, report: Report) -> dict[str, Load]:
    began = time.monotonic()
    quick, engine = report.models["quick"], report.models["engine"]
    with contextlib.ExitStack() as stack:
        loads = {
            "quick": stack.enter_context(under_load(url, "quick", num_clients=4, seconds=0.3, pause_s=0.1)),
            "engine": stack.enter_context(
                under_load(url, "engine", num_clients=4, seconds=0.1, pause_s=0.3, **SAMPLED)
            ),
        }
        for name, load in loads.items():
            report.models[name].see(load)
        stack.enter_context(reading_streams(url, quick.streams, model="quick", prompt="20"))
        stack.enter_context(reading_streams(url, engine.streams, model="engine", prompt="0.1", **SAMPLED))
        with contextlib.ExitStack() as kills:
            for name, every_s in KILL_EVERY_S.items():
                kills.enter_context(killing(name, every_s, report.models[name]))
            update(url, registry, report, until=began + SECONDS)
        report.seconds = time.monotonic() - began
        settle(url, report)
    return loads


def update(url: str, registry: Registry, report: Report, *, until: float) -> None:
    """Promote a version of either model in turn, then take it back, and so on."""
    for name, wanted in changes():
        time.sleep(max(0.0, min(UPDATE_EVERY_S, until - time.monotonic())))
        if time.monotonic() >= until:
            return
        report.change = Change(name, f"{name}@{wanted}", time.monotonic())
        (registry.nominate if wanted == 2 else registry.archive)(f"{name}@2")
        while report.change and time.monotonic() < until:
            look(url, report)


def settle(url: str, report: Report) -> None:
    """Once nobody kills replicas any more, the change that is under way comes to its end."""
    deadline = time.monotonic() + 300.0
    while report.change:
        assert time.monotonic() < deadline, f"{report.change.version} did not come into service"
        look(url, report)


def look(url: str, report: Report) -> None:
    """See whether the change that is under way has come to its end."""
    change = report.change
    if change and version_of(url, change.model) == change.version:
        report.models[change.model].updates_s.append(time.monotonic() - change.began)
        report.change = None
    else:
        time.sleep(0.2)


def changes() -> Iterator[tuple[str, int]]:
    """Names of models and versions."""
    return ((name, wanted) for wanted in itertools.cycle((2, 1)) for name in ("quick", "engine"))


def version_of(url: str, name: str) -> str | None:
    """What is served; None while whoever follows the stage is busy, or no replica at all is alive (503)."""
    models = httpx.get(f"{url}/health", timeout=30.0).json().get("models", {})
    following = models.get(name, {}).get("following")
    return following["version"] if following else None


def texts_of(load: Load) -> list[str]:
    """Answers of engines as they are; of quick models the artifact's name."""
    return [Path(text.split()[0]).name if "quick-" in text else text for text in load.texts]


def read_repeats(url: str, report: Report) -> None:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30.0).text)
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "rayloom_repeated_calls_total":
            report.models[sample.labels["model"]].num_repeated = int(sample.value)
