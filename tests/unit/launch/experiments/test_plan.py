from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rayloom.config import load_job
from rayloom.errors import ConfigError
from rayloom.launch.experiments import plan_experiment
from tests.unit.generation.artifacts import make_artifact

JOBS = Path(__file__).parents[4] / "jobs" / "experiments"
RUN = {
    "model": {"name": "tiny", "random_init": {"family": "llama", "hidden_size": 32, "vocab_size": 400}},
    "dataset": {"train_file": "rows.json", "max_input_length": 48, "max_target_length": 12},
}
EXPERIMENT = {
    "title": "Rates",
    "systems": {"tiny": {"config": "run.yaml"}},
    "vary": {"training.learning_rate": [1e-5, 3e-4, 1e-3], "generation.num_beams": [1, 2]},
    "columns": ["rougeL", "train_s", "answer_s"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps([{"question": f"Why {n}?", "answer": "So."} for n in range(9)]))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN, sort_keys=False))
    return tmp_path


def written(folder: Path, **changes: object) -> Path:
    path = folder / "rates.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}, sort_keys=False))
    return path


def test_every_combination_is_a_cell_and_what_only_measures_shares_its_training(folder: Path) -> None:
    plan = plan_experiment(written(folder))
    assert [dict(cell.point)["generation.num_beams"] for cell in plan.cells] == [1, 2] * 3
    assert len({cell.key for cell in plan.cells}) == 6
    assert len({cell.training_key for cell in plan.cells}) == 3
    first, second = plan.cells[:2]
    assert first.training == second.training
    assert first.config.training.learning_rate == 1e-5
    assert first.parameters == {"num_beams": 1, "precision": "fp32"}
    assert second.parameters["num_beams"] == 2
    assert first.name == "tiny, learning rate 1e-05, num beams 1"


def test_seeds_precision_and_a_systems_own_changes(folder: Path) -> None:
    systems = {
        "tiny": {"config": "run.yaml"},
        "tiny, int8": {"config": "run.yaml", "changes": {"precision": "int8", "training.num_epochs": 1}},
    }
    changes = {"training.num_epochs": 2}
    plan = plan_experiment(written(folder, systems=systems, changes=changes, vary={}, seeds=[1, 2]))
    assert [(cell.system, cell.seed, cell.parameters["precision"]) for cell in plan.cells] == [
        ("tiny", 1, "fp32"),
        ("tiny", 2, "fp32"),
        ("tiny, int8", 1, "int8"),
        ("tiny, int8", 2, "int8"),
    ]
    assert [cell.config.training.num_epochs for cell in plan.cells] == [2, 2, 1, 1]
    assert [cell.config.training.seed for cell in plan.cells] == [1, 2, 1, 2]
    assert len({cell.training_key for cell in plan.cells}) == 4


def test_other_rows_under_the_same_name_are_another_cell(folder: Path) -> None:
    before = plan_experiment(written(folder)).cells[0]
    (folder / "rows.json").write_text(json.dumps([{"question": f"Who {n}?", "answer": "I."} for n in range(9)]))
    after = plan_experiment(written(folder)).cells[0]
    assert (before.training == after.training, before.key == after.key) == (True, False)


def test_quick_takes_the_ends_and_its_own_changes(folder: Path) -> None:
    path = written(folder, quick={"training.max_steps": 2}, seeds=[5, 6])
    plan = plan_experiment(path, quick=True)
    assert [dict(cell.point)["training.learning_rate"] for cell in plan.cells] == [1e-5, 1e-5, 1e-3, 1e-3]
    assert {cell.config.training.max_steps for cell in plan.cells} == {2}
    assert {cell.seed for cell in plan.cells} == {5}
    assert (plan.name, plan_experiment(path).name) == ("rates-quick", "rates")


def test_an_artifact_is_measured_and_not_trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact = make_artifact(tmp_path_factory.mktemp("t5"), "t5", max_new_tokens=6)
    systems = {"made": {"artifact": str(artifact)}}
    beams = {"generation.num_beams": [1, 3]}
    plan = plan_experiment(written(folder, systems=systems, vary=beams, columns=["rougeL"]))
    assert [cell.training for cell in plan.cells] == [None, None]
    assert {cell.artifact for cell in plan.cells} == {str(artifact)}
    assert [cell.parameters for cell in plan.cells] == [
        {"num_beams": 1, "precision": "fp32"},
        {"num_beams": 3, "precision": "fp32"},
    ]
    for changes, message in (
        ({"training.num_epochs": 1}, "is an artifact, which is not trained here"),
        ({"generation.num_baems": 1}, "did you mean 'generation.num_beams'|did you mean 'num_beams'"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_experiment(written(folder, systems=systems, vary={}, columns=["rougeL"], changes=changes))
    with pytest.raises(ConfigError, match="'train_s' is a figure of training, and nothing is trained"):
        plan_experiment(written(folder, systems=systems, vary={}, columns=["train_s"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vary": {"training.lerning_rate": [1e-3]}},
            r"rates.yaml: tiny: training.lerning_rate: .*'learning_rate'",
        ),
        ({"vary": {"training.learning_rate": [-1]}}, "rates.yaml: tiny: training.learning_rate.*greater than 0"),
        ({"vary": {"training.learning_rate": [1e-3, 1e-3]}}, "each only once"),
        ({"vary": {"training.learning_rate": []}}, "needs one value at least"),
        ({"vary": {"training.seed": [1, 2]}}, "give seeds instead"),
        ({"columns": ["rougL"]}, "unknown column 'rougL'; did you mean 'rougeL'"),
        ({"columns": []}, "columns"),
        ({"measure": "none"}, "'rougeL' is told by evaluation, and measure is none"),
        ({"best": "bleu"}, "'bleu' is none of the columns"),
        ({"plot": {"x": "lora.r", "y": "rougeL"}}, "'lora.r' is no key of vary"),
        ({"plot": {"y": "bleu"}}, "'bleu' is none of the columns"),
        ({"plot": {"y": "rougeL", "lines": "system"}}, "x and lines are the same"),
        ({"systems": {"tiny": {"config": "run.yaml", "artifact": "a"}}}, "give either config"),
        ({"systems": {"tiny": {"config": "absent.yaml"}}}, "no such file"),
        ({"systems": {"tiny": {"cofig": "run.yaml"}}}, "line .*did you mean 'config'"),
        ({"changes": {"precision": "fp7"}}, "precision: 'fp7': expected fp32, bf16, int8"),
        ({"tilte": "x"}, "did you mean 'title'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_before_anything_runs(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_experiment(written(folder, **changes))


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_of_the_repository_can_be_planned(path: Path) -> None:
    for quick in (False, True):
        plan = plan_experiment(path, quick=quick)
        assert len(plan.cells) >= 2
        for cell in plan.cells:
            assert cell.training is not None
            files = (cell.training.dataset.train_file, cell.training.dataset.test_file)
            assert all(Path(str(file)).is_file() for file in files)
    with pytest.raises(ConfigError, match="run it with rayloom experiments run"):
        load_job(path)


def test_other_parameters_of_its_own_are_another_training(folder: Path) -> None:
    """The artifact has them for its own, and validation answers with them."""
    before = plan_experiment(written(folder)).cells[0]
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | {"generation": {"repetition_penalty": 1.2}}))
    after = plan_experiment(written(folder)).cells[:2]
    assert after[0].training_key == after[1].training_key != before.training_key
