"""State, ranking, report and promotion of a sweep, of records at hand: no Ray, no training."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from rayloom.config import Sweep, SweepConfig, load_run_config, validate
from rayloom.config.run import RunConfig
from rayloom.errors import ConfigError, TrainingError
from rayloom.evaluation.results import SplitResult
from rayloom.launch.session import Cluster
from rayloom.launch.sweeping import running
from rayloom.launch.sweeping.asked import check_same, keep_asked
from rayloom.launch.sweeping.measuring import MEASURED
from rayloom.launch.sweeping.plan import Need, concurrency, likely_share
from rayloom.launch.sweeping.plots import Scale
from rayloom.launch.sweeping.promoting import promote, read_results
from rayloom.launch.sweeping.ranking import results_of, spearman
from rayloom.launch.sweeping.results import write_results
from rayloom.launch.sweeping.state import Handover, Report, SweepState, TrialRecord
from rayloom.launch.sweeping.terminal import live_table, results_table
from rayloom.launch.sweeping.trial import Spec, chosen_run, replay, trial_config
from rayloom.launch.tracking.folder import RunFolder
from rayloom.registry import Registry

BASE = {"model": {"name": "t5-small"}, "dataset": {"train_file": "/data/train.jsonl"}}
SPACE = {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}, "training.batch_size": {"choice": [4, 8]}}


def make_sweep(**keys: Any) -> Sweep:
    asked = {"config": "base.yaml", "space": SPACE, "num_trials": 5} | keys
    return Sweep(validate(SweepConfig, asked), validate(RunConfig, BASE), "s")


def record(number: int, loss: float | None, *, end: str = "finished", rate: float = 1e-3, **more: Any) -> TrialRecord:
    values = {"training.learning_rate": rate, "training.batch_size": 4}
    made = TrialRecord(number, values, end=end, **more)  # type: ignore[arg-type]
    if loss is not None:
        made.add(Report(made.run, 10, 1, {"loss": loss + 0.5}, "step-00000010-a"))
        made.add(Report(made.run, 20, 2, {"loss": loss}))
    if end == "finished":
        made.score, made.artifact = loss, f"/nowhere/{number}"
    return made


def measured(folder: RunFolder, run: str, losses: list[float]) -> None:
    split = SplitResult(
        name="validation",
        num_rows=len(losses),
        num_rows_total=len(losses),
        metrics={},
        num_target_tokens=len(losses),
        row_losses=[(loss, 1) for loss in losses],
    )
    RunFolder(f"{folder.path}/{run}").write(MEASURED, split.model_dump_json())


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "s"))


@pytest.fixture
def state(folder: RunFolder) -> SweepState:
    return five_trials(folder)


def five_trials(folder: RunFolder) -> SweepState:
    """Three have finished (the second is as good as the first, the third is not), one was stopped, one failed."""
    made = SweepState(folder)
    made.trials = {
        0: record(0, 2.5, rate=1e-4),
        1: record(1, 2.0, rate=2e-3),
        2: record(2, 3.5, end="stopped", rate=9e-3),
        3: record(3, None, end="failed", rate=5e-3, error="it broke", failures=2),
        4: record(4, 2.1, rate=1e-3),
    }
    made.save()
    measured(folder, "trial-000", [2.5] * 40)
    measured(folder, "trial-001", [1.0, 3.0] * 20)
    measured(folder, "trial-004", [3.1, 1.1] * 20)
    return made


def test_a_state_comes_back_from_its_file(state, folder):
    again = SweepState(folder)
    assert list(again) == list(state)
    (folder_path := Path(folder.path)).joinpath("state.json").write_text(
        (folder_path / "state.json").read_text().replace('"number": 0', '"later": 1, "number": 0')
    )
    assert list(SweepState(folder)) == list(state), "a later version may have written more"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trials": [3]}', '{"trials": [{"values": {}}]}'])
def test_a_damaged_state_does_not_start_a_sweep_anew(folder: RunFolder, text: str) -> None:
    folder.write("state.json", text)
    with pytest.raises(TrainingError, match="is damaged"):
        SweepState(folder)


def test_trials_are_ranked_and_noise_is_told_from_worse(state):
    results = results_of(make_sweep(), state)
    assert [each.record.number for each in results.trials] == [1, 4, 0, 2, 3]
    assert [each.verdict for each in results.trials] == ["best", "within noise", "worse", "stopped", "failed"]
    assert results.trials[3].score == 3.5
    assert re.fullmatch(
        r"trial-001 won: loss 2\.0000 with learning_rate 0\.002, batch_size 4\. Ahead of the second, trial-004 with "
        r"2\.1000, by 0\.1000, which is within noise \(p 0\.\d{3}\)\.",
        results.headline,
    )
    assert results.counts == "5 trials: 3 finished, 1 stopped, 1 failed, 2 failures; 80 training steps"


def headline(folder: RunFolder, *numbers: int) -> str:
    """Of a sweep of these trials alone."""
    state = SweepState(folder)
    state.trials = {number: state.trials[number] for number in numbers}
    return results_of(make_sweep(), state).headline


def test_the_headline_tells_a_lead_from_noise(state, folder):
    measured(folder, "trial-000", [3.5, 1.5] * 20)
    assert headline(folder, 0, 1, 4).endswith(". Within noise of the best too: trial-000.")
    for name, losses in {"trial-001": [2.0], "trial-004": [2.2, 2.0], "trial-000": [2.6, 2.4]}.items():
        measured(folder, name, losses * (40 // len(losses)))
    lead = "by 0.1000, which is more than noise (p < 0.001)."
    assert headline(folder, 1, 4, 2).endswith(lead)
    assert headline(folder, 0, 1, 4).endswith(f"{lead} All others that finished are worse by more than noise, too.")
    Path(folder.path, "trial-004", MEASURED).unlink()
    assert headline(folder, 1, 4).endswith("by 0.1000; whether that is noise was not tested.")
    assert headline(folder, 1, 2, 3).endswith("so there is no second to compare with.")


def test_the_greatest_wins_where_more_is_better(state):
    results = results_of(make_sweep(mode="max"), state)
    assert results.best.record.number == 0


def pandas_spearman(one, two) -> float:
    return float(pd.DataFrame({"one": one, "two": two}).corr(method="spearman").iloc[0, 1])


def test_influence_is_spearmans_correlation(state):
    results = results_of(make_sweep(), state)
    rates = [each.values["training.learning_rate"] for each in state if each.reports]
    first = [each.reports[0].metrics["loss"] for each in state if each.reports]
    assert results.influence == {"training.learning_rate": pytest.approx(pandas_spearman(rates, first))}
    assert spearman([1, 2, 2, 5], [4, 1, 1, 1]) == pytest.approx(pandas_spearman([1, 2, 2, 5], [4, 1, 1, 1]))
    assert spearman([1, 1], [1, 2]) is None


def test_the_files_say_the_same(state, folder):
    results = results_of(make_sweep(), state)
    paths = write_results(results, folder)
    document = json.loads(Path(paths.json).read_text())
    rows = list(csv.DictReader(io.StringIO(Path(paths.csv).read_text())))
    assert [row["trial"] for row in rows] == [each["trial"] for each in document["trials"]]
    assert float(rows[0]["loss"]) == document["trials"][0]["score"] == 2.0
    assert rows[1]["verdict"] == "within noise"
    assert float(rows[1]["p_value"]) == document["trials"][1]["test"]["p_value"] > 0.05
    best = load_run_config(paths.best)
    assert best.training.learning_rate == 2e-3
    assert best.output.run_name is None


def test_the_page_needs_nothing_else_and_names_the_winner_first(state, folder):
    page = Path(write_results(results_of(make_sweep(), state), folder).html).read_text()
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.index("trial-001 won") < page.index("<table") < page.index("trial-000")
    assert page.count("<svg") == 2
    assert "it broke" in page


def test_a_setting_of_several_lines_leaves_the_best_config_one_that_trains(folder):
    key, template = "dataset.prompt_template", "Question: {input}\nmodel: none"
    state = SweepState(folder)
    state.trials = {0: TrialRecord(0, {key: template}, end="finished", score=1.0, artifact="/nowhere/0")}
    sweep = make_sweep(space={key: {"choice": [template, "{input}"]}}, num_trials=2)
    paths = write_results(results_of(sweep, state), folder)
    assert load_run_config(paths.best).dataset.prompt_template == template


def test_handed_over_settings_are_shown_and_the_best_config_says_what_it_is_not(state, folder):
    state.trials[1].handovers.append(
        Handover("trial-001.2", "trial-004/checkpoints/step-00000010-a", 10, {"training.learning_rate": 2e-3})
    )
    measured(folder, "trial-001.2", [1.0] * 40)
    paths = write_results(results_of(make_sweep(), state), folder)
    assert "Hand-overs" in Path(paths.html).read_text()
    assert "population based training" in Path(paths.best).read_text()


def test_trained_steps_leave_out_what_another_trial_did():
    made = TrialRecord(0, {})
    for run, step in (("trial-000", 10), ("trial-000", 20), ("trial-000.2", 30), ("trial-000.2", 40)):
        made.add(Report(run, step, 1, {}))
    made.handovers.append(Handover("trial-000.2", "trial-001/checkpoints/step-00000025-a", 25, {}))
    assert made.trained_steps == 20 + 15
    made.add(Report("trial-000.2", 40, 1, {"loss": 1.0}))
    assert len(made.reports) == 4, "a repeated step takes the place of the first"


def test_the_same_command_goes_on_and_another_is_refused(folder):
    check_same(make_sweep(), folder)
    keep_asked(make_sweep(), folder)
    check_same(make_sweep(num_trials=50, max_concurrent=1), folder)
    with pytest.raises(ConfigError, match="another seed"):
        check_same(make_sweep(seed=1), folder)
    other = Sweep(make_sweep().config, validate(RunConfig, BASE | {"training": {"num_epochs": 9}}), "s")
    with pytest.raises(ConfigError, match="training of the training config"):
        check_same(other, folder)


def test_failed_trials_are_tried_again_where_that_is_asked_for(state, folder, monkeypatch):
    tried: list[list[int]] = []

    def run_trials(sweep, place, state, show, *, verbose):
        tried.append([each.number for each in state if not each.end])

    monkeypatch.setattr(running, "_run_trials", run_trials)
    monkeypatch.setattr(running, "finished", lambda sweep, state: None)
    sweep = make_sweep(output={"storage_path": str(Path(folder.path).parent)})
    for retry_failed in (False, True):
        running.run_sweep(sweep, show=SimpleNamespace(say=pytest.fail), retry_failed=retry_failed)
    assert tried == [[3]]
    again = SweepState(folder).trials[3]
    assert (again.end, again.failures, again.error) == ("", 2, "it broke"), "what happened is not forgotten"


def test_a_sweep_whose_trials_all_failed_says_how_to_go_on(folder):
    state = SweepState(folder)
    state.trials = {0: record(0, None, end="failed", error="disk full")}
    with pytest.raises(TrainingError, match=r"(?s)all 1 trials failed.*--retry-failed.*trial-000: disk full"):
        running.finished(make_sweep(), state)


def test_what_is_read_from_the_folder_is_what_was_written(state, folder):
    keep_asked(make_sweep(), folder)
    assert read_results(folder.path).headline == results_of(make_sweep(), state).headline
    with pytest.raises(ConfigError, match="no folder of a sweep"):
        read_results(str(Path(folder.path).parent))


def test_only_finished_trials_can_be_promoted(state, tmp_path):
    results = results_of(make_sweep(), state)
    with pytest.raises(ConfigError, match="finished trials are trial-001, trial-004, trial-000"):
        promote(results, Registry(tmp_path / "registry"), name="qa", trial="trial-002")


NEED = Need(cpus=2, gpus=0, steps=32, steps_per_epoch=8, seconds=60.0, disk_bytes=1)


def test_as_many_trials_as_there_is_room_for():
    local = Cluster(None, 5.0, 0.0)
    assert concurrency(make_sweep().config, NEED, local) == 2
    assert concurrency(make_sweep(max_concurrent=1).config, NEED, local) == 1
    assert concurrency(make_sweep(num_trials=1).config, NEED, Cluster(None, 50.0, 0.0)) == 1
    assert concurrency(make_sweep().config, NEED, Cluster("10.0.0.1:6379", 1.0, 0.0)) == 1, "it may grow"
    with pytest.raises(ConfigError, match="needs 2 CPUs"):
        concurrency(make_sweep().config, NEED, Cluster(None, 1.0, 0.0))


def test_the_share_of_steps_that_halving_lets_through():
    def share(**asha: Any) -> float:
        return likely_share(make_sweep(scheduler={"asha": asha}).config, NEED)

    # rungs at 8 and 16 of 32: all do 8 steps, half of them 8 more, a quarter the last 16
    assert share(grace=8, reduction=2) == pytest.approx((8 + 4 + 4) / 32)
    assert share(grace=1, reduction=2, unit="epochs") == share(grace=8, reduction=2)
    assert share(grace=40) == 1.0
    assert likely_share(make_sweep().config, NEED) == 1.0


def test_which_run_of_a_trial_goes_on(tmp_path):
    sweep = str(tmp_path)
    own = {"run": "trial-001", "checkpoint": "step-00000010-a"}
    other = {"run": "trial-004", "checkpoint": "step-00000020-b"}
    donor = "trial-004/checkpoints/step-00000020-b"
    assert chosen_run(sweep, "trial-001", None) == ("trial-001", None)
    assert chosen_run(sweep, "trial-001", own) == ("trial-001", None)
    assert chosen_run(sweep, "trial-001", other) == ("trial-001.2", donor)
    assert chosen_run(sweep, "trial-001", other) == ("trial-001.2", donor), "it failed and is tried again"
    assert chosen_run(sweep, "trial-001", None) == ("trial-001.2", donor), "a new session of the sweep"
    assert chosen_run(sweep, "trial-001", other | {"checkpoint": "step-00000030-b"})[0] == "trial-001.3"
    assert chosen_run(sweep, "trial-001", {"run": "trial-001.3", "checkpoint": "x"})[0] == "trial-001.3"


def test_a_trial_gets_its_settings_and_its_own_folder():
    spec = Spec(
        sweep="/sweeps/s",
        base=validate(RunConfig, BASE).model_dump(mode="json"),
        metric="loss",
        measured=True,
        is_population=False,
        waits=False,
        cwd="/",
        environment={},
    )
    made = validate(RunConfig, trial_config(spec, {"training.seed": 7, "lora.r": 2}, "trial-003"))
    assert (made.training.seed, made.lora and made.lora.r) == (7, 2)
    assert (made.output.storage_path, made.output.run_name) == ("/sweeps/s", "trial-003")


def test_a_trial_that_has_ended_is_told_again():
    results = replay(record(0, 2.0).reports, lambda report: report.metrics["loss"], end=1.9)
    assert [(each["steps"], each["score"], each.get("done")) for each in results] == [(10, 2.5, None), (20, 1.9, True)]


def test_axes_place_values_between_their_ends():
    sweep = make_sweep().config.space
    rate = Scale.of(sweep["training.learning_rate"], [1e-3])
    assert [rate.place(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    size = Scale.of(sweep["training.batch_size"], [8, 4])
    assert (size.place(4), size.place(8)) == (0, 1)
    assert Scale.of_numbers([2.0, 2.0]).place(2.0) == 0.5


def test_losses_on_other_rows_are_not_paired(state, folder):
    for name, rows in {"trial-000": "b", "trial-001": "a", "trial-004": "a"}.items():
        place = RunFolder(f"{folder.path}/{name}")
        split = SplitResult.model_validate_json(place.read(MEASURED))
        place.write(MEASURED, split.model_copy(update={"rows_hash": rows}).model_dump_json())
    verdicts = {each.record.name: each.verdict for each in results_of(make_sweep(), state).finished}
    assert verdicts == {"trial-001": "best", "trial-004": "within noise", "trial-000": "not tested"}


def test_settings_with_brackets_and_dollars_are_shown_as_they_are(folder):
    key, templates = "dataset.prompt_template", ["[INST] {input} [/INST]", "$x_{$ {input}"]
    state = SweepState(folder)
    for number, template in enumerate(templates):
        made = TrialRecord(number, {key: template}, end="finished", score=1.0 + number, artifact="/nowhere")
        made.add(Report(made.run, 10, 1, {"loss": 1.0 + number}))
        state.trials[number] = made
    sweep = make_sweep(space={key: {"choice": templates}}, num_trials=2)
    results = results_of(sweep, state)
    console = Console(file=io.StringIO(), width=200)
    for table in (results_table(results), live_table(sweep, state, set())):
        console.print(table)
    assert console.file.getvalue().count("[INST] {input} [/INST]") == 2
    assert "$x_{$ {input}" in Path(write_results(results, folder).html).read_text()


def test_figures_that_json_has_no_word_for_are_texts(state, folder):
    state.trials[2].reports[0].metrics["perplexity"] = float("inf")
    paths = write_results(results_of(make_sweep(), state), folder)

    def refused(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    document = json.loads(Path(paths.json).read_text(), parse_constant=refused)
    assert document["trials"][3]["reports"][0]["metrics"] == {"loss": 4.0, "perplexity": "Infinity"}
