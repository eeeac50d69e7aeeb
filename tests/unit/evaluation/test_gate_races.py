"""The gate against processes that promote, roll back, measure anew and change the gate, all at once."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.config import GateConfig
from rayloom.errors import RegistryError
from rayloom.evaluation.gating import judge
from rayloom.evaluation.results import ReportDocument
from rayloom.registry import Registry
from tests.unit.evaluation import gated
from tests.unit.registry.publishing import publish_artifact

ROUGE = {1: 0.9, 2: 0.7, 3: 0.9, 4: 0.1}
"""Of four versions at first. The gate never wants less than 0.2, so that the last is never good enough."""

ROUNDS = 20


def filled(root: Path) -> Registry:
    registry = Registry(root / "registry")
    for version, rouge in ROUGE.items():
        registry.register("qa", publish_artifact(root, f"run{version}"))
        gated.measure(registry, version, rouge)
    registry.set_gate("qa", gated.gate(0.2))
    gated.promote(registry, 1)
    return registry


def replayed(registry: Registry) -> list[int]:
    """The versions that have been in production, one after the other, as the history has it.

    Every promotion must have met the gate that was in force, with the report that the version had at that moment.
    """
    least, reports, past = 0.0, dict[int | None, str](), list[int]()
    for change in registry.history("qa"):
        if change.action == "gate changed":
            least = GateConfig.model_validate_json(change.detail).metrics["rougeL"].min or 0.0
        elif change.action == "measured":
            reports[change.version] = change.detail.removeprefix("report ")
        elif change.action in ("promoted", "rolled back to"):
            assert change.version is not None
            assert change.detail == (f"in place of {past[-1]}" if past else "the first")
            if change.action == "promoted":
                assert rouge_of(registry, reports[change.version]) >= least
            else:
                assert change.version in past
            past.append(change.version)
    return past


def rouge_of(registry: Registry, report: str) -> float:
    (path,) = (registry.root / "reports").glob(f"{report}*.json")
    return ReportDocument.model_validate_json(path.read_text()).result.splits[0].metrics["rougeL"]


@pytest.mark.slow
def test_processes_at_once_never_get_a_failing_version_into_production(tmp_path: Path) -> None:
    registry = filled(tmp_path)
    context = multiprocessing.get_context("fork")
    asked = [(str(registry.root), actor, ROUNDS) for actor in range(len(gated.ACTORS))]
    processes = [context.Process(target=gated.act, args=each, daemon=True) for each in asked]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        processes[0].join(0.02)
        inside = [version.version for version in registry.versions("qa") if version.stage == "production"]
        assert len(inside) == 1
        assert inside != [4]
    assert [process.exitcode for process in processes] == [0] * len(processes)
    past = replayed(registry)
    assert registry.get("qa").version == past[-1]
    assert len(past) > 2, "a race that nobody wins shows nothing"
    assert len(registry.verdicts("qa@4")) == ROUNDS
    assert not any(verdict.passed for verdict in registry.verdicts("qa@4"))


@pytest.mark.slow
@settings(max_examples=8)
@given(turns=st.lists(st.integers(0, len(gated.ACTORS) - 1), min_size=10, max_size=25), seed=st.integers(0, 1000))
def test_no_order_of_calls_gets_a_failing_version_into_production(
    tmp_path_factory: pytest.TempPathFactory, turns: list[int], seed: int
) -> None:
    registry, chance = filled(tmp_path_factory.mktemp("registry")), random.Random(seed)
    for actor in turns:
        try:
            gated.ACTORS[actor](registry, chance)
        except RegistryError:
            continue
    assert registry.get("qa").version == replayed(registry)[-1]


def test_verdicts_that_were_given_in_other_times_promote_nothing(tmp_path: Path) -> None:
    """Judged while it was good enough; promoted when it is not."""
    registry = filled(tmp_path)
    gated.measure(registry, 3, 0.9)
    early = judge(registry, "qa@3", device="cpu")
    assert early.passed
    gated.measure(registry, 3, 0.1)
    with pytest.raises(RegistryError, match="another report"):
        registry.promote(early.id)
    with pytest.raises(RegistryError, match="does not pass the gate: rougeL: 0.1 on test"):
        gated.promote(registry, 3)
    assert replayed(registry) == [1]


def test_a_verdict_against_an_old_report_of_production_promotes_nothing(tmp_path: Path) -> None:
    """The rival was measured again between the comparison and the promotion."""
    registry = filled(tmp_path)
    early = judge(registry, "qa@2", device="cpu")
    assert early.passed
    older = registry.record(early.model_copy(update={"production_report_hash": None}))
    gated.measure(registry, 1, 0.95)
    with pytest.raises(RegistryError, match="qa@1 got another report after qa@2 was compared with it"):
        registry.promote(early.id)
    assert replayed(registry) == [1]
    registry.promote(older.id)  # by the rules of its time, as a log tells it
    assert replayed(registry) == [1, 2]
