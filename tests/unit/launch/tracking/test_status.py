from __future__ import annotations

import math
import os
import uuid
from pathlib import Path

import pytest

from rayloom.config import TrainingConfig
from rayloom.errors import ConfigError
from rayloom.launch.tracking.folder import RunFolder
from rayloom.launch.tracking.status import (
    STALE_S,
    RunStatus,
    list_runs,
    process_started,
    read_history,
    read_status,
)
from rayloom.launch.tracking.status_keeper import StatusKeeper
from rayloom.launch.tracking.trackers import Outcome
from tests.fakes_tracking import eval_record, step_record


def running(**changes: object) -> RunStatus:
    return RunStatus("a", state="running", host="here", pid=os.getpid(), updated=1000.0, **changes)  # type: ignore[arg-type]


def test_a_driver_on_this_machine_counts_while_its_very_process_lives() -> None:
    started = process_started(os.getpid())
    assert started is not None
    assert running(pid_started=started).judged(host="here", now=1e12).state == "running"
    assert running(pid_started=started - 1000).judged(host="here", now=1000.0).state == "interrupted"


def test_a_driver_elsewhere_counts_while_it_gives_signs_of_life() -> None:
    assert running().judged(host="there", now=1000.0 + STALE_S - 1).state == "running"
    assert running().judged(host="there", now=1000.0 + STALE_S + 1).state == "interrupted"


def test_what_has_ended_stays_ended() -> None:
    assert RunStatus("a", state="failed").judged(host="here", now=1e12).state == "failed"


@pytest.mark.parametrize("remote", [False, True])
def test_the_status_follows_the_run_over_resumptions(tmp_path: Path, remote: bool) -> None:
    place = f"memory://status-{uuid.uuid4().hex}/a" if remote else str(tmp_path / "a")
    folder = RunFolder(place)
    for events, outcome in (
        ([step_record(20), eval_record(20, loss=2.0)], Outcome("failed", error="lost a node")),
        ([step_record(40, loss=1.0), eval_record(40, loss=3.0)], Outcome("finished", artifact="/x")),
    ):
        keeper = StatusKeeper(folder, "a", TrainingConfig())
        keeper.start()
        assert (read_status(folder, "a").state, read_status(folder, "a").error) == ("running", None)
        keeper.log(events)
        keeper.finish(outcome)
    status = read_status(folder, "a")
    assert (status.state, status.step, status.total_steps, status.loss) == ("finished", 40, 40, 1.0)
    assert (status.metric, status.best, status.best_step, status.artifact) == ("loss", 2.0, 20, "/x")
    assert list(Path(tmp_path).glob("**/.status*")) == []


def test_the_best_follows_the_metric_that_counts(tmp_path: Path) -> None:
    keeper = StatusKeeper(RunFolder(str(tmp_path)), "a", TrainingConfig(metric_for_best="rougeL"))
    keeper.start()
    keeper.log([eval_record(20), eval_record(40)])
    keeper.finish(Outcome("finished"))
    assert read_status(RunFolder(str(tmp_path)), "a").best_step == 20


def test_a_list_holds_runs_only_and_survives_damage(tmp_path: Path) -> None:
    for name in ("b", "a", "old"):
        RunFolder(str(tmp_path / name)).write("config.yaml", "")
    (tmp_path / "no-run").mkdir()
    RunFolder(str(tmp_path / "a")).write("status.json", '{"name": "moved", "state": "failed", "later_key": 1}')
    RunFolder(str(tmp_path / "b")).write("status.json", '{"sta')
    RunFolder(str(tmp_path / "old")).write("artifact/manifest.json", "{}")
    found = [status for _, status in list_runs(str(tmp_path))]
    assert [(each.name, each.state) for each in found] == [("a", "failed"), ("b", "unknown"), ("old", "finished")]
    with pytest.raises(ConfigError, match="holds no runs"):
        list_runs(str(tmp_path / "nowhere"))


def test_a_line_of_the_history_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    lines = [
        '{"kind": "step", "step": 20, "loss": 1}',
        '{"kind": "step", "step": 10}',
        '{"kind": "step", "step": 20, "loss": 2}',
    ]
    RunFolder(str(tmp_path)).write("history.jsonl", "\n".join([*lines, '{"kind": "st']))
    assert [(record["step"], record.get("loss")) for record in read_history(RunFolder(str(tmp_path)))] == [
        (10, None),
        (20, 2),
    ]


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "a"))
    keeper = StatusKeeper(folder, "a", TrainingConfig())
    keeper.start()
    keeper.log([eval_record(20, loss=math.nan)])
    keeper.log([eval_record(40, loss=2.0), eval_record(60, loss=math.nan)])
    keeper.finish(Outcome("finished"))
    status = read_status(folder, "a")
    assert (status.best, status.best_step) == (2.0, 40)
