"""Runs that go on with other workers and another ZeRO stage follow the run that was left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.elastic.worlds import CUTS, STEPS, Ended, Leg, run_legs

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A run of 2, then 1, then 2 workers, and the ZeRO stage of each leg (None: plain PyTorch)."""

    family: str
    stages: tuple[int | None, int | None, int | None]
    lora: bool = False
    bf16: bool = False

    @property
    def name(self) -> str:
        stages = "-".join("plain" if stage is None else f"z{stage}" for stage in self.stages)
        return f"{self.family}{'-lora' * self.lora}{'-bf16' * self.bf16}-{stages}"

    @property
    def leg(self) -> Leg:
        return Leg(self.name, self.family, self.stages[0], lora=self.lora, bf16=self.bf16)

    @property
    def loss_noise(self) -> float:
        """Relative. Other sums in another order: float32 keeps seven digits, bfloat16 two to three."""
        return 1e-3 if self.bf16 else 2e-6

    @property
    def weight_noise(self) -> float:
        """Absolute; weights are about 1, the learning rate is 1e-3. A group's weight decay of its neighbour's shows."""
        return 2e-3 if self.bf16 else 5e-6


CASES = [
    Case("llama", (2, 1, 2)),
    Case("t5", (3, 2, 3)),
    Case("llama", (2, 3, 1), lora=True),
    Case("gpt_neo", (1, 1, 2), bf16=True),
    Case("gpt_neo", (0, None, 3)),
    Case("gpt_neo", (None, 0, None)),
    Case("t5", (None, None, None)),
    Case("llama", (0, 0, 0), bf16=True),
]


@dataclass(frozen=True)
class Followed:
    """One case: the undisturbed run, and the two later legs."""

    fixed: Ended
    alone: Ended
    again: Ended

    @property
    def losses(self) -> dict[int, float]:
        """Losses of the steps that other workers did."""
        first, second = CUTS
        return {s: self.alone.losses[s] for s in range(first + 1, second + 1)} | self.again.losses

    @property
    def loss_deviation(self) -> float:
        return max(abs(loss / self.fixed.losses[step] - 1.0) for step, loss in self.losses.items())

    @property
    def weight_deviation(self) -> float:
        fixed, ended = self.fixed.weights(), self.again.weights()
        assert fixed.keys() == ended.keys()
        return max(float((weight - ended[name]).abs().max()) for name, weight in fixed.items())


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Followed]]:
    root: Path = tmp_path_factory.mktemp("elastic")
    fixed = run_legs([case.leg for case in CASES], root / "two", world_size=2)
    alone = run_legs(_onwards(fixed, 1), root / "one", world_size=1)
    again = run_legs(_onwards(alone, 2), root / "two-again", world_size=2)
    runs = {case.name: Followed(fixed[case.name], alone[case.name], again[case.name]) for case in CASES}
    yield runs
    print("\n2 → 1 → 2 workers                        loss, relative   weights, absolute")  # noqa: T201
    for name, run in runs.items():
        print(f"{name:40} {run.loss_deviation:14.1e} {run.weight_deviation:19.1e}")  # noqa: T201


def _onwards(before: dict[str, Ended], turn: int) -> list[Leg]:
    for name, end in before.items():
        assert end.error is None, f"{name}: {end.error}"
    return [
        replace(case.leg, stage=case.stages[turn], resume_from=str(before[case.name].checkpoint(CUTS[turn - 1])))
        for case in CASES
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_workers_go_on_with_the_same_run(case: Case, followed: dict[str, Followed]) -> None:
    run = followed[case.name]
    assert run.again.error is None, run.again.error
    assert (min(run.alone.losses), min(run.again.losses)) == (CUTS[0] + 1, CUTS[1] + 1)
    assert max(run.again.losses) == STEPS
    assert [end.progress["world_size"] for end in (run.fixed, run.alone, run.again)] == [2, 1, 2]
    assert {end.progress["global_batch_size"] for end in (run.fixed, run.alone, run.again)} == {8}
    assert run.again.progress["tokens"] == run.fixed.progress["tokens"]
    assert run.loss_deviation < case.loss_noise
    assert run.weight_deviation < case.weight_noise
