"""Whole sweeps on a local Ray: trials are real runs, in processes of their own."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from rayloom.artifacts import open_artifact
from rayloom.cli.app import main
from rayloom.config import load_run_config, load_sweep
from rayloom.errors import TrainingError
from rayloom.evaluation import SplitResult
from rayloom.launch import run_training
from rayloom.launch.sweeping.measuring import MEASURED
from rayloom.launch.sweeping.promoting import promote, read_results
from rayloom.launch.sweeping.reports import checkpoints
from rayloom.launch.sweeping.running import SweepOutcome, run_sweep
from rayloom.launch.sweeping.state import Report, SweepState, TrialRecord
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import read_history
from rayloom.registry import Registry

ROOT = Path(__file__).parents[2]

GOOD, BAD = 1e-2, 1e-6
"""Learning rates whose losses nobody takes for each other's."""


class Lines:
    """A `Show` that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.plans: list[Any] = []
        self.lock = threading.RLock()  # a console has one too: it cannot be pickled

    def say(self, text: str) -> None:
        self.said.append(text)

    def planned(self, sweep, prepared, plan, cluster, place) -> None:
        self.plans.append(plan)

    @contextlib.contextmanager
    def watching(self, state, running) -> Iterator[None]:
        yield


def write_sweep(folder: Path, *, name: str = "s", overrides: dict[str, Any] | None = None, **keys: Any) -> Path:
    base = {
        "dataset.max_train_rows": 64,
        "dataset.max_validation_rows": 32,
        "training.num_epochs": 2,
        "training.batch_size": 8,
        "training.eval_rows": 0,
        "training.eval_on_start": False,
        "training.logging_steps": 1,
        "training.warmup_ratio": None,
        "training.lr_scheduler": "constant",
        "distributed.num_workers": 1,
        "distributed.zero_stage": None,
    }
    asked = {
        "config": str(ROOT / "jobs/finetune/tiny_t5_qa.yaml"),
        "overrides": base | (overrides or {}),
        "output": {"storage_path": str(folder), "name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(asked | keys))
    return path


def sweep(path: Path, show: Lines | None = None) -> SweepOutcome:
    return run_sweep(load_sweep(path), show=show or Lines())


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.1)
    return found


@pytest.fixture
def rayloom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command line on this process's Ray; gives what it prints, without line breaks."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rayloom", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return " ".join(said.out.split())

    return run


def ended_before(folder: Path, *, loss: float, rows: int) -> None:
    """The first trial of a sweep as an earlier session has left it; all its rows have the same loss."""
    record = TrialRecord(0, {"training.learning_rate": BAD}, end="finished", score=loss, artifact="/an/earlier/place")
    record.add(Report("trial-000", 4, 1.0, {"loss": loss}))
    split = SplitResult(
        name="validation",
        num_rows=rows,
        num_rows_total=rows,
        metrics={"loss": loss},
        num_target_tokens=rows,
        row_losses=[(loss, 1)] * rows,
    )
    RunFolder(str(folder / "trial-000")).write(MEASURED, split.model_dump_json())
    state = SweepState(RunFolder(str(folder)))
    state.trials = {0: record}
    state.save()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_command_goes_on_to_its_report_and_the_winner_into_production(tmp_path, rayloom):
    # One real trial: most of a trial's time goes into starting its processes.
    path = write_sweep(
        tmp_path,
        overrides={"training.num_epochs": 1, "dataset.max_train_rows": 32, "dataset.max_validation_rows": 8},
        space={"training.learning_rate": {"grid": [BAD, GOOD]}},
        search="grid",
    )
    folder = tmp_path / "s"
    ended_before(folder, loss=50.0, rows=8)
    said = rayloom("sweep", str(path))
    assert "1 more have ended already" in said
    assert "trial-001 won: loss " in said
    assert "which is more than noise (p " in said
    best, worst = json.loads((folder / "sweep.json").read_text())["trials"]
    assert [(each["trial"], each["verdict"]) for each in (best, worst)] == [
        ("trial-001", "best"),
        ("trial-000", "worse"),
    ]
    assert open_artifact(best["artifact"]).manifest.metrics["loss"] == best["score"] < worst["score"]
    assert "trial-001 won" in (folder / "sweep.html").read_text()
    assert load_run_config(folder / "best.yaml").training.learning_rate == GOOD
    place = ("--registry", str(tmp_path / "registry"))
    assert "rank 1 of 2" in rayloom("sweep", "promote", str(folder), "--name", "qa", *place)
    assert "qa@1 is production now" in rayloom("models", "promote", "qa@1", *place)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_sweep_goes_to_its_report(tmp_path):
    path = write_sweep(tmp_path, space={"training.learning_rate": {"grid": [GOOD, BAD]}}, search="grid")
    show = Lines()
    outcome = sweep(path, show)
    (plan,) = show.plans
    assert (plan.num_trials, plan.concurrent, plan.need.steps) == (2, 2, 16)
    assert plan.disk_bytes > 0
    best, worst = outcome.results.trials
    assert (best.record.name, best.verdict, worst.verdict) == ("trial-000", "best", "worse")
    assert worst.test is not None
    assert worst.test.p_value < 0.05
    assert open_artifact(best.record.artifact).manifest.metrics["loss"] == best.score
    assert [
        each["step"] for each in read_history(RunFolder(f"{outcome.folder}/trial-000")) if each["kind"] == "evaluation"
    ] == [8, 16]
    with Path(outcome.paths.csv).open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["trial-000", "trial-001"]
    assert "trial-000 won" in Path(outcome.paths.html).read_text()
    version = promote(read_results(outcome.folder), Registry(tmp_path / "registry"), name="qa")
    assert version.lineage.run == "trial-000"
    assert "rank 1 of 2" in version.note
    # Nothing is left behind, and a second time nothing runs.
    wait_until(lambda: free_cpus() == 4.0)
    again = Lines()
    assert sweep(path, again).results.best.score == best.score
    assert (again.plans, again.said) == ([], [])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_halving_stops_what_is_behind_and_the_best_config_trains_again_to_the_same_score(tmp_path):
    path = write_sweep(
        tmp_path,
        overrides={"training.num_epochs": 4},
        space={"training.learning_rate": {"loguniform": [BAD, GOOD]}, "training.weight_decay": {"choice": [0.0, 0.01]}},
        start_with=[{"training.learning_rate": rate, "training.weight_decay": 0.0} for rate in (GOOD, BAD, 2 * BAD)],
        search="optuna",
        num_trials=3,
        max_concurrent=1,
        scheduler={"asha": {"grace": 1, "reduction": 2, "unit": "epochs"}},
    )
    outcome = sweep(path)
    by_name = {each.record.name: each.record for each in outcome.results.trials}
    assert by_name["trial-000"].end == "finished"
    assert [by_name[name].end for name in ("trial-001", "trial-002")] == ["stopped", "stopped"]
    assert by_name["trial-001"].steps == 8
    assert not Path(outcome.folder, "trial-001/artifact").exists()
    assert set(checkpoints(f"{outcome.folder}/trial-001")) == {8}, "it waited for Tune's word"
    wait_until(lambda: free_cpus() == 4.0)
    config = load_run_config(outcome.paths.best, [f"output.storage_path={tmp_path / 'again'}"])
    again = run_training(config, sink=lambda _: None, announce=lambda *_: None)
    assert again.metrics["loss"] == outcome.results.best.score


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_failed_trials_are_tried_again_and_a_sweep_without_a_result_is_an_error(tmp_path):
    # Nobody can know beforehand that weights of such a size overflow.
    path = write_sweep(tmp_path, space={"training.learning_rate": {"grid": [1e30]}}, search="grid", max_failures=1)
    show = Lines()
    with pytest.raises(TrainingError, match="all 1 trials failed(?s:.*)not finite"):
        sweep(path, show)
    (record,) = SweepState(RunFolder(str(tmp_path / "s")))
    assert (record.end, record.failures) == ("failed", 2)
    assert sum("tried again" in line for line in show.said) == 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_population_hands_over_weights_and_optimizer_of_two_workers(tmp_path):
    path = write_sweep(
        tmp_path,
        overrides={
            "training.num_epochs": 3,
            "training.batch_size": 4,
            "distributed.num_workers": 2,
            "distributed.cpus_per_worker": 2,  # one trial at a time: they take turns, whatever the machine's speed
            "distributed.zero_stage": 2,
        },
        space={"training.learning_rate": {"loguniform": [BAD, GOOD]}},
        start_with=[{"training.learning_rate": GOOD}, {"training.learning_rate": BAD}],
        num_trials=2,
        scheduler={"pbt": {"interval": 8, "quantile": 0.5, "resample": 0.0}},
    )
    outcome = sweep(path)
    loser = next(each.record for each in outcome.results.trials if each.record.name == "trial-001")
    assert loser.handovers
    first = loser.handovers[0]
    assert first.donor.startswith("trial-000/")
    assert first.values["training.learning_rate"] > 100 * BAD, "settings come from the donor, a little changed"
    donor, before, after = (losses(outcome.folder, run) for run in ("trial-000", "trial-001", first.run))
    assert min(after) == first.step + 1 == 17, "it goes on, and does not start again"
    assert max(before) == first.step, "it waited for Tune's word"
    assert after[first.step + 1] == pytest.approx(donor[first.step + 1], rel=1e-5)
    assert after[first.step + 1] < min(before.values()) - 0.5
    names = [path.name for path in Path(outcome.folder, first.run, "checkpoints").rglob("*optim_states.pt")]
    assert len(set(names)) == 2, "the optimizer's state is in shards"
    wait_until(lambda: free_cpus() == 4.0)


def losses(sweep: str, run: str) -> dict[int, float]:
    return {each["step"]: each["loss"] for each in read_history(RunFolder(f"{sweep}/{run}")) if each["kind"] == "step"}


@pytest.mark.slow
def test_after_a_killed_driver_the_same_command_goes_on(tmp_path):
    path = write_sweep(
        tmp_path,
        # Long enough that a quick machine is still training when the trial learns that its driver is gone.
        overrides={"training.num_epochs": 60, "training.eval_every_epochs": 10, "training.checkpoint_every_steps": 4},
        space={"training.learning_rate": {"grid": [GOOD, GOOD / 2, GOOD / 4]}},
        search="grid",
        max_concurrent=1,
    )
    folder = tmp_path / "s"
    driver = start(path, tmp_path / "first.log")
    wait_until(lambda: driver.poll() is not None or steps_of(folder, "trial-001") > 8, 240)
    assert driver.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
    trial = trial_process(driver.pid)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE)
    psutil.wait_procs(family, timeout=60)
    made = (folder / "trial-000/artifact/manifest.json").stat().st_mtime_ns
    trained = steps_of(folder, "trial-001")
    assert trained < 480
    second = start(path, tmp_path / "second.log")
    assert second.wait(300) == 0, (tmp_path / "second.log").read_text()[-3000:]
    document = json.loads((folder / "sweep.json").read_text())
    assert [each["end"] for each in document["trials"]] == ["finished"] * 3
    again = (folder / "trial-000/artifact/manifest.json").stat().st_mtime_ns
    assert again == made, "a finished trial is not repeated"
    notes = (folder / "trial-001/notes.jsonl").read_text()
    assert "resumed at step" in notes
    assert "1 more have ended already" in (tmp_path / "second.log").read_text()


def trial_process(driver: int) -> psutil.Process:
    for each in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # processes come and go
            if "rayloom.launch.sweeping.process" in each.cmdline():
                return each
    raise AssertionError("no trial is running")


def start(path: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "rayloom", "sweep", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def steps_of(folder: Path, run: str) -> int:
    return int(RunFolder(str(folder / run)).read_json("status.json").get("step", 0))
