"""Experiments with a trainer that copies an artifact, and real evaluations of it."""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayloom.cli.experiments import _command
from rayloom.config import RunConfig, dump_yaml
from rayloom.errors import ConfigError, TrainingError
from rayloom.evaluation.comparing import measure
from rayloom.launch.experiments import Cell, ExperimentStore, Plan, Watch, Workbench, plan_experiment, run_experiment
from tests.unit.generation.artifacts import make_artifact, run_config

COMMAND = "rayloom experiments run beams.yaml"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_artifact(tmp_path_factory.mktemp("t5"), "t5", max_new_tokens=6)


@dataclass
class Trainer:
    """Publishes copies of one artifact, and remembers what it was asked for."""

    artifact: Path
    asked: list[RunConfig] = field(default_factory=list)
    broken: float | None = None

    def __call__(self, config: RunConfig, *, sink: Any, announce: Any) -> Any:
        self.asked.append(config)
        if config.training.learning_rate == self.broken:
            raise TrainingError("the loss is not finite at step 3")
        place = Path(config.output.storage_path) / str(config.output.run_name) / "artifact"
        assert not place.exists()
        shutil.copytree(self.artifact, place)
        rate = config.training.learning_rate
        return Outcome(str(place), {"train_s": 100 * rate, "train_tokens_per_s": 50.0, "step": 4.0, "loss": 2.0})


@dataclass(frozen=True)
class Outcome:
    """As `TrainOutcome`, without a run."""

    artifact: str
    metrics: dict[str, float]


@dataclass
class Seen:
    """What was told, and when to stop."""

    cells: list[str] = field(default_factory=list)
    stop_at: int | None = None

    def watch(self) -> Watch:
        @contextlib.contextmanager
        def nothing() -> Iterator[Any]:
            yield None

        return Watch(cell=self.cell, training=nothing, announce=lambda *_: None, measuring=nothing)

    def cell(self, cell: Cell, number: int, total: int) -> None:
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.cells.append(cell.name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = run_config(tmp_path, "t5").model_dump(mode="json", exclude_unset=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    experiment = {
        "title": "Rates and beams",
        "about": "What is asked.",
        "systems": {"tiny": {"config": "run.yaml"}},
        "changes": {"evaluation.latency_prompts": 0, "evaluation.num_resamples": 50},
        "vary": {"training.learning_rate": [0.25, 0.5], "generation.num_beams": [1, 2]},
        "columns": ["rougeL", "perplexity", "train_s", "answer_s", "latency_p50_s"],
        "plot": {"x": "generation.num_beams", "y": "answer_s", "lines": "training.learning_rate"},
        "output": str(tmp_path / "docs"),
        "storage_path": str(tmp_path / "runs"),
    }
    path = tmp_path / "beams.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return path


def run(plan: Plan, trainer: Trainer, seen: Seen) -> str:
    bench = Workbench(train=trainer, measure=measure, session=lambda workers: contextlib.nullcontext())
    run_experiment(plan, seen.watch(), command=COMMAND, device="cpu", workbench=bench)
    return (Path(plan.experiment.output) / "beams.md").read_text()


def test_a_table_is_trained_measured_and_written(path: Path, artifact: Path) -> None:
    plan, trainer, seen = plan_experiment(path), Trainer(artifact), Seen()
    page = run(plan, trainer, seen)
    assert len(seen.cells) == 4
    assert [config.training.learning_rate for config in trainer.asked] == [0.25, 0.5]
    header = "| learning rate | num beams | ROUGE-L | Perplexity | training time | time per answer | latency p50 |"
    assert header in page
    number = r"[\d.e+]+"
    spread = rf"(?: \({number} to {number}\))?"  # none where every row has the same score
    line = rf"\| 0.25 \| 2 \| {number} %{spread} \| {number}{spread} \| 25.0 s \| "
    assert re.search(line, page)
    assert "What is asked." in page
    assert "has the best ROUGE-L" in page
    assert "not measured yet" not in page
    assert f"Made by `{COMMAND}`" in page
    for word in (
        "machine",
        "load average before",
        "SHA-256 dddddddddddd",
        "torch",
        "random initialisation",
        "sacrebleu",
    ):
        assert word in page
    lines = list(csv.DictReader((path.parent / "docs" / "beams.csv").read_text().splitlines()))
    assert [line["generation.num_beams"] for line in lines] == ["1", "2", "1", "2"]
    assert [float(line["train_s"]) for line in lines] == [25.0, 25.0, 50.0, 50.0]
    for line in lines:
        assert float(line["rougeL_low"]) <= float(line["rougeL"]) <= float(line["rougeL_high"])
        assert line["latency_p50_s"] == ""
        assert int(line["num_rows"]) >= 2
    svg = (path.parent / "docs" / "beams.svg").read_text()
    assert svg.startswith("<svg")
    assert "![Rates and beams](beams.svg)" in page


def test_what_is_done_is_not_done_again(path: Path, artifact: Path) -> None:
    plan, trainer = plan_experiment(path), Trainer(artifact)
    with pytest.raises(KeyboardInterrupt):
        run(plan, trainer, Seen(stop_at=4))
    page = (path.parent / "docs" / "beams.md").read_text()
    assert "1 of 4 cells are not measured yet: run `" in page
    assert "has the best" not in page
    seen = Seen()
    run(plan_experiment(path), trainer, seen)
    assert seen.cells == ["tiny, learning rate 0.5, num beams 2"]
    assert len(trainer.asked) == 2
    seen = Seen()
    run(plan_experiment(path, ["columns=[rougeL]", "plot=null"]), trainer, seen)
    assert seen.cells == []
    shutil.rmtree(ExperimentStore(plan.root).trained(plan.cells[0].training_key).artifact)
    assert ExperimentStore(plan.root).trained(plan.cells[0].training_key) is None


def test_a_run_that_breaks_stands_in_the_table_and_is_tried_again(path: Path, artifact: Path) -> None:
    trainer, seen = Trainer(artifact, broken=0.25), Seen()
    page = run(plan_experiment(path), trainer, seen)
    assert "| 0.25 | 1 | failed: the loss is not finite at step 3 | – |" in page
    assert "has the best" not in page
    assert len(seen.cells) == 4
    trainer.broken = None
    seen = Seen()
    assert "failed" not in run(plan_experiment(path), trainer, seen)
    assert seen.cells == ["tiny, learning rate 0.25, num beams 1", "tiny, learning rate 0.25, num beams 2"]


def test_seeds_give_means_and_ranges(path: Path, artifact: Path) -> None:
    values = yaml.safe_load(path.read_text()) | {"seeds": [1, 2], "vary": {}, "plot": None}
    values["columns"], values["measure"] = ["train_s", "train_steps"], "none"
    path.write_text(yaml.safe_dump(values, sort_keys=False))

    class Slower(Trainer):
        def __call__(self, config: RunConfig, *, sink: Any, announce: Any) -> Any:
            outcome = super().__call__(config, sink=sink, announce=announce)
            return Outcome(outcome.artifact, outcome.metrics | {"train_s": 10.0 * config.training.seed})

    page = run(plan_experiment(path), Slower(artifact), Seen())
    assert "| 15.0 s (10.0 s to 20.0 s) | 4 |" in page
    assert "Means over 2 seeds of training" in page
    assert not (path.parent / "docs" / "beams.svg").exists()


def test_a_page_before_the_first_run_has_no_figures(path: Path, artifact: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(plan_experiment(path), Trainer(artifact), Seen(stop_at=1))
    page = (path.parent / "docs" / "beams.md").read_text()
    assert "4 of 4 cells are not measured yet" in page
    assert "How this was measured" not in page
    assert re.findall(r"\d %", page) == []


def test_an_artifact_path_of_ones_own_is_refused(path: Path, artifact: Path) -> None:
    config = RunConfig.model_validate(yaml.safe_load((path.parent / "run.yaml").read_text()))
    output = config.output.model_copy(update={"artifact_path": "elsewhere"})
    (path.parent / "run.yaml").write_text(dump_yaml(config.model_copy(update={"output": output})))
    with pytest.raises(ConfigError, match="keeps its artifacts itself"):
        run(plan_experiment(path), Trainer(artifact), Seen())


def test_the_command_on_the_page_is_what_was_typed() -> None:
    found = _command(Path("jobs/a b.yaml"), ["output=x"], quick=True)
    assert found == "rayloom experiments run 'jobs/a b.yaml' --quick --set output=x"


def test_a_seed_that_is_missing_is_told_beside_the_mean_of_the_others(path: Path, artifact: Path) -> None:
    values = yaml.safe_load(path.read_text()) | {"seeds": [1, 2, 3], "vary": {}, "plot": None, "measure": "none"}
    values["columns"] = ["train_s", "validation_loss"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))

    class Unlucky(Trainer):
        def __call__(self, config: RunConfig, *, sink: Any, announce: Any) -> Any:
            seed = config.training.seed
            if seed == 3:
                raise TrainingError("the loss is not finite at step 3")
            outcome = super().__call__(config, sink=sink, announce=announce)
            loss = float("nan") if seed == 2 else 2.0
            return Outcome(outcome.artifact, outcome.metrics | {"train_s": 10.0 * seed, "loss": loss})

    page = run(plan_experiment(path), Unlucky(artifact), Seen())
    assert "| 15.0 s (10.0 s to 20.0 s); 2 of 3 seeds, failed: the loss is not finite at step 3 | – |" in page


def test_a_quick_page_speaks_of_the_one_seed_that_it_took(path: Path, artifact: Path) -> None:
    values = yaml.safe_load(path.read_text()) | {"seeds": [1, 2], "vary": {}, "plot": None, "columns": ["rougeL"]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run(plan_experiment(path), Trainer(artifact), Seen())
    plan = plan_experiment(path, quick=True)
    bench = Workbench(train=Trainer(artifact), measure=measure, session=lambda workers: contextlib.nullcontext())
    run_experiment(plan, Seen().watch(), command=COMMAND, device="cpu", workbench=bench)
    pages = {name: (path.parent / "docs" / f"{name}.md").read_text() for name in ("beams", "beams-quick")}
    assert ["Means over 2 seeds of training" in page for page in pages.values()] == [True, False]
    assert "Each row is one run." in pages["beams-quick"]
