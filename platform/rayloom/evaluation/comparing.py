"""Several systems on the same rows: each in a process of its own, so that its memory is its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayloom.artifacts import open_artifact
from rayloom.config import DatasetConfig, EvaluationConfig, TaskType
from rayloom.data import Columns, Row, columns_for, load_splits, read_rows
from rayloom.errors import EngineError, RayloomError, RequestError, UserError
from rayloom.evaluation.contest import Contest, Contestant
from rayloom.evaluation.evaluate import Evaluator, Progress
from rayloom.evaluation.jobs import artifact_config
from rayloom.evaluation.results import EvaluationResult
from rayloom.evaluation.summary import significance
from rayloom.generation import TextGenerator
from rayloom.registry import locate


@dataclass(frozen=True)
class System:
    """What is compared: an artifact, with its own generation parameters or others.

    Attributes:
        target: Folder or URI of the artifact, or a version in the registry.
        parameters: Changes to its generation parameters; ``precision`` is that of its weights.
    """

    target: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How tables call it."""
        changes = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.target} ({changes})" if changes else self.target


@dataclass(frozen=True)
class Questions:
    """The rows that all systems answer.

    Attributes:
        dataset: Where they are: that of the first artifact's run.
        task: Of the first artifact.
        split: Which split of the dataset.
        file: Instead of the dataset, all rows of this file.
    """

    dataset: DatasetConfig
    task: TaskType
    split: str = "test"
    file: str | None = None

    @classmethod
    def of(cls, target: str, *, split: str, file: str | None) -> Questions:
        """The rows that an artifact was trained for, or those of a file.

        Raises:
            ArtifactError: The target is no artifact, or one without a config.
        """
        config = artifact_config(open_artifact(locate(target)), target)
        return cls(config.dataset, config.model.task_type, split, file)

    @property
    def columns(self) -> Columns:
        """Where inputs and targets are."""
        return columns_for(self.dataset, self.task)

    @property
    def name(self) -> str:
        """How reports call them."""
        return self.file or f"{self.split} split of the first system's run"

    def rows(self) -> list[Row]:
        """Read them.

        Raises:
            DataError: They cannot be read.
        """
        if self.file is not None:
            return read_rows(self.file, text_column=self.dataset.text_column, text_unit=self.dataset.text_unit)
        return list(load_splits(self.dataset, self.columns).rows(self.split))


def compare(
    systems: Sequence[System],
    questions: Questions,
    config: EvaluationConfig,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Contest:
    """Measure systems one after the other on the same rows, and test each against the first.

    Args:
        systems: Two at least.
        questions: What they answer.
        config: What is measured, on how many rows.
        device: Where; the first GPU if there is one where not given.
        progress: Told how far each part is.

    Raises:
        RequestError: Fewer than two systems, two of the same, or one that cannot be measured.
        UserError: Rows or artifacts that cannot be read.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or len(names) < 2:
        raise RequestError(f"a comparison needs two systems that differ, not {', '.join(names) or 'none'}")
    found = [measure_apart(system, questions, config, device, _named(progress, system.name)) for system in systems]
    first = found[0].splits[0]
    tests = [{}, *(significance(result.splits[0], first, config) for result in found[1:])]
    contestants = [
        Contestant(
            name=system.name, target=system.target, parameters=dict(system.parameters), result=result, tests=test
        )
        for system, result, test in zip(systems, found, tests, strict=True)
    ]
    return Contest(rows=questions.name, task=questions.task, systems=contestants)


def measure(
    system: System, questions: Questions, config: EvaluationConfig, device: str | None, progress: Progress | None
) -> EvaluationResult:
    """Measure one system here. See `compare`."""
    parameters = dict(system.parameters)
    generator = TextGenerator(locate(system.target), device=device, precision=parameters.pop("precision", "fp32"))
    if generator.artifact is None:
        raise RequestError("only artifacts can be compared: a plain model has no prompt template for these rows")
    if generator.template.task != questions.task:
        raise RequestError(
            f"it is made for {generator.template.task}, the first system for {questions.task}; compare one task's"
        )
    evaluator = Evaluator(generator, questions.columns, config, parameters, questions.dataset.cache_dir, progress)
    return evaluator.run({"rows" if questions.file else questions.split: questions.rows()})


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def measure_apart(
    system: System, questions: Questions, config: EvaluationConfig, device: str | None, progress: Progress | None
) -> EvaluationResult:
    """Measure a system in a fresh process: what it takes at its peak is then not another's. See `compare`.

    Raises:
        RequestError: It cannot be measured as it was asked.
        EngineError: Its process failed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, system, questions, config, device), daemon=True)
    process.start()
    there.close()
    try:
        return _received(here, system.name, progress)
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():  # we are being interrupted
            process.kill()
            process.join()
        process.close()


def _received(
    connection: multiprocessing.connection.Connection, name: str, progress: Progress | None
) -> EvaluationResult:
    while True:
        try:
            kind, *content = connection.recv()
        except EOFError:
            raise EngineError(f"{name}: its process ended without a word; was there too little memory?") from None
        if kind == "progress" and progress is not None:
            progress(*content)
        elif kind == "result":
            return EvaluationResult.model_validate_json(content[0])
        elif kind == "refused":
            raise RequestError(f"{name}: {content[0]}")
        elif kind == "failed":
            raise EngineError(f"{name}: {content[0]}")


def _child(
    connection: multiprocessing.connection.Connection,
    system: System,
    questions: Questions,
    config: EvaluationConfig,
    device: str | None,
) -> None:
    def told(what: str, done: int, total: int) -> None:
        connection.send(("progress", what, done, total))

    say: Callable[[tuple[str, str]], None] = connection.send
    try:
        say(("result", measure(system, questions, config, device, told).model_dump_json()))
    except UserError as error:
        say(("refused", str(error)))
    except RayloomError as error:
        say(("failed", str(error)))
    except Exception:
        say(("failed", traceback.format_exc()))
