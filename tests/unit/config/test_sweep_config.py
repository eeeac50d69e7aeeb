"""A sweep file loads as written; what is wrong in it is named before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.config import RunConfig, SweepConfig, load_job, load_sweep
from rayloom.config.sweep import HANDED_OVER, SMALLER_IS_BETTER, flattened
from rayloom.errors import ConfigError
from rayloom.evaluation.measures import SMALLER_IS_BETTER as OF_EVALUATION

BASE = "model: {name: t5-small}\ndataset: {train_file: train.jsonl}\n"
SWEEP = """\
config: base.yaml
space:
  training.learning_rate: {loguniform: [1e-4, 1e-2]}
  lora.r: {choice: [4, 8]}
num_trials: 3
"""


@pytest.fixture
def load(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(BASE)

    def load(text: str, *overrides: str):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return load_sweep(path, overrides)

    return load


def test_trials_are_the_base_with_their_settings(load):
    sweep = load(SWEEP + "overrides: {training: {num_epochs: 2}, training.batch_size: 4}\n")
    config = sweep.trial_config({"training.learning_rate": 0.001, "lora.r": 8}, run_name="trial-000")
    assert (config.training.learning_rate, config.training.num_epochs, config.training.batch_size) == (0.001, 2, 4)
    assert config.lora is not None
    assert config.lora.r == 8
    assert config.output.run_name == "trial-000"
    assert Path(config.dataset.train_file or "").is_absolute()
    assert sweep.name == "sweep"
    assert isinstance(load_job(sweep_path(sweep)), SweepConfig)


def test_data_files_start_at_the_folder_of_the_training_config(load, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "base.yaml").write_text(BASE)
    sweep = load("""
config: training/base.yaml
overrides: {dataset.test_file: test.jsonl, dataset.validation_file: s3://bucket/validation.jsonl}
space: {dataset.train_file: {choice: [a.jsonl, /data/b.jsonl]}}
start_with: [{dataset.train_file: a.jsonl}]
num_trials: 2
""")
    folder = tmp_path / "training"
    assert sweep.base.dataset.test_file == str(folder / "test.jsonl")
    assert sweep.base.dataset.validation_file == "s3://bucket/validation.jsonl"
    assert sweep.config.space["dataset.train_file"].values == [str(folder / "a.jsonl"), "/data/b.jsonl"]
    assert sweep.config.start_with == [{"dataset.train_file": str(folder / "a.jsonl")}]


def sweep_path(sweep) -> Path:
    return Path(sweep.base.dataset.train_file).parent / "sweep.yaml"


def test_a_setting_of_the_command_line_goes_before_the_file(load):
    assert load(SWEEP, "num_trials=7", "overrides.training.seed=3").config.num_trials == 7
    assert load(SWEEP, "overrides.training.seed=3").base.training.seed == 3


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (SWEEP.replace("learning_rate", "learning_rat"), 3, "did you mean 'learning_rate'"),
        (SWEEP.replace("[1e-4, 1e-2]", "[-1, 1]"), 3, "above 0"),
        (SWEEP.replace("loguniform: [1e-4", "uniform: [-1e-4"), 3, "greater than 0"),
        (SWEEP.replace("[4, 8]", "[4, many]"), 4, "valid integer"),
        (SWEEP.replace("[4, 8]", "[4, 4]"), 4, "each value once"),
        (SWEEP.replace("{choice: [4, 8]}", "{choice: [4], grid: [8]}"), 4, "give one of"),
        (SWEEP.replace("{choice: [4, 8]}", "{chioce: [4, 8]}"), 4, "did you mean 'choice'"),
        (SWEEP.replace("lora.r", "output.run_name"), 4, "cannot be varied"),
        (SWEEP.replace("num_trials: 3\n", ""), None, "needs num_trials"),
        (SWEEP + "search: grid\n", 6, "needs lists of values"),
        (SWEEP + "overrides: {lora.r: 3}\n", 6, "give it once"),
        (SWEEP + "overrides:\n  training.sed: 3\n", 7, "did you mean 'seed'"),
        (SWEEP + "start_with:\n- {lora.r: 4}\n", 6, "lacks training.learning_rate"),
        (SWEEP + "start_with:\n- {lora.r: 5, training.learning_rate: 1e-3}\n", 6, "outside the space of lora.r"),
        (SWEEP + "metric: rougeL\n", 6, "training.metric_for_best: rougeL"),
        (SWEEP + "metric: evaluation.chrf\nscheduler: {asha: {grace: 2}}\n", 7, "only known of finished"),
        (SWEEP + "scheduler: {asha: {grace: 2}, median: {}}\n", 6, "contradict each other"),
        (SWEEP + "scheduler: {pbt: {interval: 4}}\n", 6, "pbt cannot change lora.r"),
        (SWEEP + "scheduler: {asha: {grace: 2, interval: 3}}\n", 6, "unknown key"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(load, text, line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert caught.value.path is not None
    assert line is None or caught.value.line == line


def test_a_metric_without_answers_to_compute_it_from_is_refused(load):
    overrides = "overrides: {training.eval_rows: 0, training.metric_for_best: loss}\n"
    with pytest.raises(ConfigError, match="generates no answers"):
        load(SWEEP + overrides + "metric: exact_match\n")


@pytest.mark.parametrize(
    ("text", "total"),
    [
        (SWEEP, 3),
        (SWEEP.replace("choice", "grid"), 6),
        ("config: base.yaml\nsearch: grid\nspace: {lora.r: {grid: [1, 2, 3]}, training.seed: {choice: [1, 2]}}\n", 6),
    ],
)
def test_grids_are_crossed(load, text, total):
    assert load(text).config.total_trials == total


def test_which_way_is_better_follows_from_the_metric(load):
    best = "overrides: {training.metric_for_best: rougeL}\n"
    assert load(SWEEP).config.direction == "min"
    assert load(SWEEP + best + "metric: rougeL\n").config.direction == "max"
    assert load(SWEEP + best + "metric: evaluation.rougeL\nmode: min\n").config.direction == "min"
    assert SMALLER_IS_BETTER == OF_EVALUATION


def test_what_pbt_may_change_are_keys_that_exist():
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    for key in HANDED_OVER:
        section, name = key.split(".")
        assert name in str(getattr(sections[section], "model_fields", sections[section])) or section == "lora"


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("xy"), st.integers())))
def test_nested_overrides_mean_dotted_ones(nested):
    flat = flattened(nested)
    for key, value in flat.items():
        first, _, last = key.partition(".")
        assert (nested[first][last] if last else nested[first]) == value
