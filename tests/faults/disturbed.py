"""Runs that are killed again and again, beside the same run undisturbed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.drivers import (
    Driver,
    commits,
    history,
    kill,
    logged_step,
    pause,
    resumed_step,
    saved_step,
    weights_hash,
)

JOBS = Path(__file__).parents[2] / "jobs" / "finetune"
STEPS = 240
"""Enough for three kills: lines come in bursts, and a quick machine makes dozens of steps between two of them."""
FAMILIES = {"t5": "tiny_t5_qa", "gpt_neo": "tiny_gpt_neo_lm", "llama_lora": "tiny_llama_lora_qa"}
KILLS = ("worker", "driver", "worker")
"""Who is killed, one after the other, in one run."""


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix."""

    family: str
    stage: int | None
    packed: bool
    compiled: bool = False

    def __str__(self) -> str:
        stage = "plain" if self.stage is None else f"zero{self.stage}"
        data = "packed" if self.packed else "bucketed"
        return f"{self.family}-{stage}-{data}{'-compiled' if self.compiled else ''}"

    def overrides(self, folder: Path | str) -> list[str]:
        """The run's settings: two workers, accumulation, dropout, mid-epoch checkpoints, all of which are kept."""
        return [
            f"output.storage_path={folder}",
            f"training.max_steps={STEPS}",
            "training.num_epochs=20",
            "training.batch_size=4",
            "training.gradient_accumulation_steps=2",
            "training.checkpoint_every_steps=3",
            "training.logging_steps=1",
            "training.eval_rows=0",
            "training.eval_on_start=false",
            "training.save_total_limit=1000",
            f"training.packing={'true' if self.packed else 'false'}",
            f"training.compile={'true' if self.compiled else 'false'}",
            f"distributed.zero_stage={'null' if self.stage is None else self.stage}",
            "distributed.max_failures=5",
            "dataset.max_train_rows=384",
            "dataset.max_validation_rows=16",
        ]


@dataclass
class Outcome:
    """What became of a disturbed run."""

    cell: Cell
    kills: list[str] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)
    """Last step that was announced as saved before each kill."""
    resumed: list[int] = field(default_factory=list)
    """Step that the run said it went on from after each kill."""
    verdict: str = "failed"


def undisturbed(cell: Cell, folder: Path) -> Path:
    """The run as it should be; returns its folder."""
    with Driver(JOBS / f"{FAMILIES[cell.family]}.yaml", cell.overrides(folder), name="whole", resume=False) as driver:
        driver.finish()
    return folder / "whole"


def disturbed(cell: Cell, folder: Path | str, outcome: Outcome, *, kills: tuple[str, ...] = KILLS) -> None:
    """The same run, named ``killed``, killed at random moments."""
    dice, pending, resume = random.Random(str(cell)), list(kills), False
    while True:
        job = JOBS / f"{FAMILIES[cell.family]}.yaml"
        with Driver(job, cell.overrides(folder), name="killed", resume=resume) as driver:
            while pending:
                who = _strike(driver, pending[0], dice, outcome, resumes=resume or bool(outcome.kills))
                pending.pop(0)
                if who == "driver":
                    break
            else:
                _await_resumption(driver, outcome)
                driver.finish()
                return
        resume = True


def _strike(driver: Driver, who: str, dice: random.Random, outcome: Outcome, *, resumes: bool) -> str:
    """Let the run save something new, and kill at a random moment after that."""
    start = _await_resumption(driver, outcome) if resumes else 0
    saved, steps_left = 0, dice.randint(0, 5)
    while saved <= start or steps_left > 0:
        line = driver.next_line()
        assert line is not None, f"the run ended before it could be killed:\n{driver.tail()}"
        saved = max(saved, saved_step(line) or 0)
        steps_left -= logged_step(line) is not None and saved > start
    pause(dice.uniform(0.0, 0.3))
    outcome.kills.append(who)
    outcome.announced.append(saved)
    if who == "driver":
        driver.kill()
    else:
        kill(dice.choice(driver.workers()))
    return who


def _await_resumption(driver: Driver, outcome: Outcome) -> int:
    while len(outcome.resumed) < len(outcome.kills):
        line = driver.next_line()
        assert line is not None, f"the run did not go on after the kill:\n{driver.tail()}"
        step, saved = resumed_step(line), saved_step(line)
        if saved is not None:  # said before the kill, and heard after it
            outcome.announced[-1] = max(outcome.announced[-1], saved)
        if step is not None:
            outcome.resumed.append(step)
    return outcome.resumed[-1]


def assert_same(outcome: Outcome, whole: Path, killed: Path) -> None:
    """The killed run went on where it had saved, and ended as the other one."""
    assert len(outcome.resumed) == len(outcome.kills) == len(KILLS)
    assert outcome.resumed == last_saved(killed)
    for announced, resumed in zip(outcome.announced, outcome.resumed, strict=True):
        assert 0 < announced <= resumed
    # What a killed driver had not yet written down is lost to the log, never to the run.
    unheard = {step for a, r in zip(outcome.announced, outcome.resumed, strict=True) for step in range(a + 1, r + 1)}
    assert sorted(history(whole, "step")) == list(range(1, STEPS + 1))
    for kind in ("step", "evaluation"):
        expected, found = history(whole, kind), history(killed, kind)
        assert expected.keys() - found.keys() <= unheard
        for step, figures in found.items():
            assert figures == expected[step], f"{kind} of step {step}"
    assert weights_hash(killed) == weights_hash(whole)


def last_saved(run: Path) -> list[int]:
    """For each attempt after the first, the highest step that the attempts before it had committed."""
    attempts: dict[str, int] = {}
    for commit in commits(run):
        attempts[commit.attempt] = max(attempts.get(commit.attempt, 0), commit.step)
    steps = list(attempts.values())
    return [max(steps[: index + 1]) for index in range(len(steps) - 1)]
