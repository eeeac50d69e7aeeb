"""Run an experiment's cells: real training runs and real evaluations, one after the other."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rayloom.artifacts import open_artifact
from rayloom.config import DistributedConfig, OutputConfig, RunConfig
from rayloom.errors import ConfigError, EngineError, TrainingError
from rayloom.evaluation.comparing import Questions, System, measure_apart
from rayloom.evaluation.evaluate import Progress
from rayloom.evaluation.results import EvaluationResult
from rayloom.launch.experiments.document import write_document
from rayloom.launch.experiments.plan import Cell, Plan
from rayloom.launch.experiments.provenance import provenance_now
from rayloom.launch.experiments.records import CellRecord, Provenance, Trained
from rayloom.launch.experiments.store import ExperimentStore
from rayloom.launch.preparation import Prepared
from rayloom.launch.progress import Sink
from rayloom.launch.runs import Run
from rayloom.launch.session import Cluster, ray_session
from rayloom.launch.training import Announce, TrainOutcome, run_training
from rayloom.registry import manifest_digest


@dataclass(frozen=True)
class Watch:
    """Who is told how far it is.

    Attributes:
        cell: Called with each cell before it starts, its number from 1, and how many are to be done.
        training: Opens what takes the progress of a training run.
        announce: Called once a run is ready to start.
        measuring: Opens what takes the progress of an evaluation.
    """

    cell: Callable[[Cell, int, int], None]
    training: Callable[[], AbstractContextManager[Sink]]
    announce: Announce
    measuring: Callable[[], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Workbench:
    """Who trains and who measures; tests put others there.

    Attributes:
        train: As `run_training`.
        measure: As `measure_apart`: in a process of its own, whose memory is its own.
        session: As `ray_session`.
    """

    train: Callable[..., TrainOutcome] = run_training
    measure: Callable[..., EvaluationResult] = measure_apart
    session: Callable[[DistributedConfig], AbstractContextManager[Cluster | None]] = ray_session


def run_experiment(
    plan: Plan, watch: Watch, *, command: str, device: str | None = None, workbench: Workbench | None = None
) -> Mapping[str, CellRecord]:
    """Do all cells that are not done yet; the page is written anew after each.

    A cell whose training or engine fails is noted with what ended it, and the others go on.

    Args:
        plan: The experiment.
        watch: Told how far it is.
        command: What the user typed, for the page.
        device: Where results are measured; the first GPU if there is one where not given.
        workbench: Who trains and measures.

    Returns:
        What is known of every cell, by its key.

    Raises:
        UserError: A config, data file, model or parameter that its author can mend.
    """
    store = ExperimentStore(plan.root)
    bench = workbench or Workbench()
    doing = _Doing(plan, store, watch, bench, provenance_now(), device)
    todo = [cell for cell in _different(plan) if not store.is_done(cell.key)]
    write_document(plan, store.records(plan), command=command)
    with _session(todo, store, bench):
        for number, cell in enumerate(todo, start=1):
            watch.cell(cell, number, len(todo))
            store.keep_cell(cell.key, doing.record(cell))
            write_document(plan, store.records(plan), command=command)
    return store.records(plan)


def _different(plan: Plan) -> list[Cell]:
    """Cells of one key have one result."""
    return list({cell.key: cell for cell in plan.cells}.values())


def _session(todo: list[Cell], store: ExperimentStore, bench: Workbench) -> AbstractContextManager[Cluster | None]:
    """One Ray for all runs, with room for the largest; none where everything is trained already."""
    runs = [cell.training for cell in todo if cell.training is not None and store.trained(cell.training_key) is None]
    if not runs:
        return contextlib.nullcontext()
    return bench.session(max((run.distributed for run in runs), key=_cpus))


def _cpus(workers: DistributedConfig) -> float:
    return workers.num_workers * workers.cpus_per_worker


@dataclass(frozen=True)
class _Doing:
    """An experiment that is under way."""

    plan: Plan
    store: ExperimentStore
    watch: Watch
    workbench: Workbench
    here: Provenance
    device: str | None

    def record(self, cell: Cell) -> CellRecord:
        """Train a cell if need be, and measure it."""
        start, trained, result, error = time.monotonic(), None, None, None
        try:
            if cell.training is not None:
                trained = self.store.trained(cell.training_key) or self._trained(cell)
                start = time.monotonic()
            result = self._measured(cell, trained)
        except (TrainingError, EngineError) as failure:
            # A learning rate at which training breaks is a finding, and no reason to lose the rest of the table.
            error = str(failure)
        seconds = time.monotonic() - start
        return CellRecord(
            name=cell.name, trained=trained, result=result, error=error, seconds=seconds, provenance=self.here
        )

    def _trained(self, cell: Cell) -> Trained:
        config = _placed(cell, self.store)
        start, rows = time.monotonic(), dict[str, int]()

        def announce(prepared: Prepared, cluster: Cluster, run: Run) -> None:
            rows.update({name: len(prepared.splits.rows(name)) for name in ("train", "validation", "test")})
            self.watch.announce(prepared, cluster, run)

        with self.watch.training() as sink:
            outcome = self.workbench.train(config, sink=sink, announce=announce)
        trained = Trained(
            artifact=outcome.artifact,
            digest=manifest_digest(outcome.artifact),
            metrics=outcome.metrics,
            rows=rows,
            data_hash=open_artifact(outcome.artifact).manifest.data_hash,
            base=config.model.name,
            seconds=time.monotonic() - start,
            provenance=self.here,
        )
        self.store.keep_trained(cell.training_key, trained)
        return trained

    def _measured(self, cell: Cell, trained: Trained | None) -> EvaluationResult | None:
        split, config = self.plan.experiment.measure, cell.config
        if split == "none":
            return None
        target = trained.artifact if trained is not None else cell.artifact
        assert target is not None
        questions = Questions(config.dataset, config.model.task_type, split)
        system = System(target, cell.parameters)
        with self.watch.measuring() as progress:
            return self.workbench.measure(system, questions, config.evaluation, self.device, progress)


def _placed(cell: Cell, store: ExperimentStore) -> RunConfig:
    """The training config, in a fresh folder of the experiment's."""
    assert cell.training is not None
    if cell.training.output.artifact_path is not None:
        raise ConfigError("an experiment keeps its artifacts itself: leave this out", key="output.artifact_path")
    name = f"run-{cell.training_key[:16]}"
    # Of an interrupted command. It begins anew, so that its times are of one piece.
    shutil.rmtree(store.runs / name, ignore_errors=True)
    return cell.training.model_copy(update={"output": OutputConfig(storage_path=str(store.runs), run_name=name)})
