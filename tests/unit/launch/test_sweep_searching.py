"""Proposals and decisions of Tune as our sweeps set them up, without a Ray."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from rayloom.config import SweepConfig
from rayloom.launch.sweeping.orders import SCORE, TRIAL
from rayloom.launch.sweeping.searching import Proposals, mutation, scheduler, startup_trials
from rayloom.launch.sweeping.space import Point

SPACE: dict[str, Any] = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "training.warmup_ratio": {"quniform": [0.0, 0.25, 0.1]},
    "lora.r": {"integer": [1, 3]},
    "lora.target_modules": {"choice": [["q"], ["q", "v"], None]},
}
WARM: Point = {
    "training.learning_rate": 2e-3,
    "training.warmup_ratio": 0.1,
    "lora.r": 2,
    "lora.target_modules": ["q", "v"],
}


def config(**keys: Any) -> SweepConfig:
    asked = {"config": "x", "space": SPACE, "num_trials": 6, "search": "optuna"}
    return SweepConfig.model_validate(asked | keys)


def proposals(asked: SweepConfig, known: list[tuple[int, Point]] | None = None, used: int = 0):
    begun: list[tuple[int, Point]] = []
    searcher = Proposals(asked, known=known or [], used=used, begun=lambda *each: begun.append(each))
    return searcher, begun


def all_of(searcher: Proposals) -> list[tuple[int, Point]]:
    found = []
    while (suggested := searcher.suggest(f"id{len(found)}")) != Searcher.FINISHED:
        found.append((suggested[TRIAL]["number"], suggested[TRIAL]["values"]))
    return found


def test_proposals_lie_in_the_space_after_the_warm_starts():
    asked = config(start_with=[WARM])
    searcher, begun = proposals(asked)
    found = all_of(searcher)
    assert found == begun
    assert [number for number, _ in found] == list(range(6))
    assert found[0][1] == WARM
    for _, values in found:
        assert all(asked.space[key].holds(value) for key, value in values.items())
    assert all_of(proposals(asked)[0]) == found, "equal seeds propose equally"
    assert all_of(proposals(config(start_with=[WARM], seed=1))[0]) != found


def test_trials_of_earlier_sessions_come_again_under_their_numbers():
    asked = config(start_with=[WARM])
    known = [(0, WARM), (2, WARM | {"lora.r": 3})]  # 1 has failed for good
    found = all_of(proposals(asked, known, used=3)[0])
    assert found[:2] == known
    assert [number for number, _ in found] == [0, 2, 3, 4, 5]


def test_results_steer_proposals():
    space = {"x": {"uniform": [0.0, 1.0]}}
    searcher, _ = proposals(config(space=space, num_trials=40))
    found = []
    for at in range(40):
        value = searcher.suggest(f"id{at}")[TRIAL]["values"]["x"]
        found.append(value)
        searcher.on_trial_result(f"id{at}", {SCORE: (value - 0.7) ** 2, "training_iteration": 1})
        searcher.on_trial_complete(f"id{at}", {SCORE: (value - 0.7) ** 2})
    early, late = (sorted(abs(value - 0.7) for value in part) for part in (found[:10], found[20:]))
    assert late[len(late) // 2] < 0.6 * early[len(early) // 2], (early, late)


def test_a_small_sweep_asks_the_model_early():
    assert [startup_trials(total) for total in (3, 12, 100)] == [3, 4, 10]


def decide(asked: SweepConfig, reports: list[tuple[str, int, float]]) -> list[str]:
    """Decisions on reports of trial, step and loss."""
    chosen = scheduler(asked)
    assert chosen.set_search_properties(SCORE, "min")
    trials = {name: SimpleNamespace(trial_id=name, is_finished=lambda: False) for name, _, _ in reports}
    for trial in trials.values():
        chosen.on_trial_add(None, trial)
    return [
        chosen.on_trial_result(None, trials[name], {"steps": step, SCORE: loss, "time_total_s": step})
        for name, step, loss in reports
    ]


def test_halving_stops_what_is_behind_at_a_rung_and_nothing_between_rungs():
    asked = config(search="random", scheduler={"asha": {"grace": 10, "reduction": 2}})
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    reports = [
        ("a", 9, 2.0),
        ("a", 12, 2.0),
        ("b", 9, 9.0),
        ("b", 12, 3.0),
        ("c", 11, 1.0),
        ("c", 15, 9.0),
        ("c", 21, 9.0),
    ]
    assert decide(asked, reports) == [go, go, go, stop, go, go, go]
    assert decide(asked, [("a", 10**6, 2.0)]) == [go], "a run itself knows when it is done"


def test_no_scheduler_lets_all_go_on():
    assert isinstance(scheduler(config()), FIFOScheduler)
    assert isinstance(scheduler(config(scheduler={"median": {}})), MedianStoppingRule)


def test_a_population_stays_in_its_space():
    space = {
        "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "training.lr_scheduler": {"choice": ["linear", "cosine"]},
    }
    asked = config(space=space, search="random", scheduler={"pbt": {"interval": 5, "factors": [0.1, 10.0]}})
    chosen = scheduler(asked)
    assert isinstance(chosen, PopulationBasedTraining)
    donor = SimpleNamespace(
        config={TRIAL: {"number": 3, "values": {"training.learning_rate": 2e-3, "training.lr_scheduler": "linear"}}}
    )
    for _ in range(30):
        changed, _ = chosen._get_new_config(None, donor)
        values = changed[TRIAL]["values"]
        assert all(asked.space[key].holds(value) for key, value in values.items())
        assert values["training.learning_rate"] in (1e-4, 1e-2) or values["training.learning_rate"] != 2e-3
    assert donor.config[TRIAL]["values"]["training.learning_rate"] == 2e-3


@pytest.mark.parametrize("key", ["training.learning_rate", "lora.target_modules"])
def test_settings_are_drawn_anew_from_their_dimension(key):
    dimension = config().space[key]
    drawn = mutation(dimension, random.Random(0))
    assert dimension.holds(drawn()) if callable(drawn) else drawn == dimension.values
