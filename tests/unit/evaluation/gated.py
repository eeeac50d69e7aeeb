"""Versions whose ROUGE-L is whatever a test wants, and processes that try to get them into production."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from rayloom.config import GateConfig
from rayloom.errors import RegistryError
from rayloom.evaluation import EvaluationResult, Resources, SplitResult
from rayloom.evaluation.gating import attach_report, judge
from rayloom.evaluation.results import ReportDocument
from rayloom.registry import Registry


def gate(least: float) -> GateConfig:
    """A gate that looks at ROUGE-L alone."""
    return GateConfig.model_validate({"golden_replay": False, "metrics": {"rougeL": {"min": least}}})


def measure(registry: Registry, version: int, rouge: float) -> str:
    """Attach a report with this ROUGE-L; the report's hash."""
    result = EvaluationResult(
        model="qa",
        task="question-answering",
        family="t5",
        created="now",
        splits=[SplitResult(name="test", num_rows=1, num_rows_total=1, metrics={"rougeL": rouge}, num_target_tokens=1)],
        resources=Resources(device="cpu", dtype="fp32"),
        generation={},
        evaluation={},
        artifact={"digest": registry.get(f"qa@{version}").digest},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        path.write_text(ReportDocument(result=result).model_dump_json())
        report = attach_report(registry, f"qa@{version}", path).report
    assert report is not None
    return report.sha256


def promote(registry: Registry, version: int) -> None:
    """As ``rayloom models promote`` does."""
    registry.promote(judge(registry, f"qa@{version}", device="cpu").id)


Act = Callable[[Registry, random.Random], None]


def promoter(version: int) -> Act:
    """Tries to promote a version."""

    def act(registry: Registry, _: random.Random) -> None:
        promote(registry, version)

    return act


def measurer(version: int) -> Act:
    """Measures a version anew: good or bad."""

    def act(registry: Registry, chance: random.Random) -> None:
        measure(registry, version, chance.choice([0.1, 0.9]))

    return act


def rollback(registry: Registry, _: random.Random) -> None:
    """As ``rayloom models rollback`` does."""
    registry.rollback("qa", expected=registry.get("qa@production").version)


def keep_gate(registry: Registry, chance: random.Random) -> None:
    """Makes the gate stricter or looser."""
    registry.set_gate("qa", gate(chance.choice([0.2, 0.6, 0.8])))


ACTORS: list[Act] = [
    promoter(1), promoter(2), promoter(3), promoter(4), measurer(3), rollback, keep_gate
]  # fmt: skip
"""What the processes of a race do."""


def act(root: str, actor: int, rounds: int) -> None:
    """Do it again and again; refusals are what races are about."""
    registry, chance = Registry(root), random.Random(actor)
    for _ in range(rounds):
        try:
            ACTORS[actor](registry, chance)
        except RegistryError:
            continue
