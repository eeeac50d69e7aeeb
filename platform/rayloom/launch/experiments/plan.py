"""From an experiment's file to its cells, every one of them checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rayloom.artifacts import open_artifact
from rayloom.config import (
    DatasetConfig,
    ExperimentConfig,
    ExperimentSystem,
    RunConfig,
    WeightPrecision,
    build_section,
    load_run_config,
    load_section,
)
from rayloom.config.experiments import PRECISION, SEED
from rayloom.errors import ConfigError
from rayloom.evaluation.jobs import artifact_config
from rayloom.launch.experiments.columns import check_columns
from rayloom.registry import locate, manifest_digest

_OF_TRAINING = ("model", "dataset", "training", "lora", "distributed")
_OF_MEASURING = ("generation", "evaluation", PRECISION)

Point = tuple[tuple[str, Any], ...]
"""Values by the keys that vary."""


@dataclass(frozen=True)
class Cell:
    """One thing to train (unless another cell has trained it) and to measure.

    Attributes:
        system: Its name in the table.
        point: Values of what varies.
        seed: Of training; None for the config's own.
        config: How it is measured.
        training: What is trained; None for an artifact that there is.
        artifact: That artifact.
        parameters: Of generation when it is measured, with the precision of the engine's weights.
        training_key: Equal for cells that share their training.
        key: Equal for cells with equal results.
    """

    system: str
    point: Point
    seed: int | None
    config: RunConfig
    training: RunConfig | None
    artifact: str | None
    parameters: dict[str, Any]
    training_key: str
    key: str

    @property
    def name(self) -> str:
        """For people."""
        parts = [f"{short(key)} {value_text(value)}" for key, value in self.point]
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        return ", ".join([self.system, *parts])


@dataclass(frozen=True)
class Plan:
    """A whole experiment.

    Attributes:
        experiment: Its config.
        path: Its file.
        is_quick: Cut down to show that it works; its figures mean nothing.
        cells: In the order of the table; seeds of a row beside each other.
    """

    experiment: ExperimentConfig
    path: Path
    is_quick: bool
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Of its files: that of the config, without ending."""
        return f"{self.path.stem}-quick" if self.is_quick else self.path.stem

    @property
    def num_seeds(self) -> int:
        """Trainings of each row of the table."""
        return len({cell.seed for cell in self.cells})

    @property
    def root(self) -> Path:
        """Folder of its runs and of what has been measured."""
        return Path(self.experiment.storage_path).expanduser().absolute() / self.name


def plan_experiment(path: Path | str, overrides: Sequence[str] = (), *, quick: bool = False) -> Plan:
    """Read an experiment, and resolve and check the config of each of its cells.

    Args:
        path: YAML file.
        overrides: ``a.b=c`` settings that go before the file's.
        quick: Take only the ends of what varies, and the changes that the file has for this.

    Raises:
        ConfigError: Something in the file, or in a config that it leads to, is wrong.
        ArtifactError: An artifact that it names cannot be used.
    """
    path = Path(path)
    experiment = load_section(ExperimentConfig, path, overrides)
    check_columns(experiment, path)
    cells = [
        cell
        for name, system in experiment.systems.items()
        for cell in _cells(_Origin(path, experiment, name, system, quick=quick))
    ]
    return Plan(experiment, path, quick, tuple(cells))


@dataclass(frozen=True)
class _Origin:
    """A system of an experiment's file."""

    path: Path
    experiment: ExperimentConfig
    name: str
    system: ExperimentSystem
    quick: bool

    def changes(self, point: Point, seed: int | None) -> dict[str, Any]:
        quick = self.experiment.quick if self.quick else {}
        seeded = {} if seed is None else {SEED: seed}
        return self.experiment.changes | self.system.changes | quick | dict(point) | seeded

    def wrong(self, error: ConfigError) -> ConfigError:
        """The same error, told of the place that the reader can mend."""
        text = str(error).removeprefix("--set, ")
        return ConfigError(f"{self.name}: {text}", path=self.path)


def _cells(origin: _Origin) -> Iterator[Cell]:
    experiment = origin.experiment
    seeds: list[int | None] = list(experiment.seeds[: 1 if origin.quick else None]) or [None]
    for point in _points(experiment.vary, ends_only=origin.quick):
        for seed in seeds:
            changes = origin.changes(point, seed)
            precision = _precision(origin, changes.pop(PRECISION, "fp32"))
            try:
                yield _cell(origin, point, seed, changes, precision)
            except ConfigError as error:
                raise origin.wrong(error) from None


def _points(vary: Mapping[str, Sequence[Any]], *, ends_only: bool) -> Iterator[Point]:
    chosen = [[values[0], values[-1]] if ends_only and len(values) > 2 else values for values in vary.values()]
    for values in itertools.product(*chosen):
        yield tuple(zip(vary, values, strict=True))


def _cell(origin: _Origin, point: Point, seed: int | None, changes: dict[str, Any], precision: WeightPrecision) -> Cell:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    system, training = origin.system, None
    if system.config is not None:
        base = load_run_config(origin.path.parent / system.config)
        config = load_run_config(origin.path.parent / system.config, overrides)
        # What only says how it is measured must not part cells whose training is the same.
        training = config.model_copy(update={"generation": base.generation, "evaluation": base.evaluation})
        training_key = _training_key(training)
        asked = config.generation.model_dump(mode="json", exclude_unset=True)
    else:
        assert system.artifact is not None
        config = _measured_config(origin, system.artifact, changes, overrides)
        training_key = manifest_digest(locate(system.artifact))
        asked = _of_generation(changes)  # the artifact knows its own
    parameters = asked | {PRECISION: precision}
    measured = {"evaluation": _dump(config)["evaluation"], "parameters": parameters, **_files(config.dataset)}
    key = _hash({"training": training_key, "split": origin.experiment.measure, **measured})
    return Cell(origin.name, point, seed, config, training, system.artifact, parameters, training_key, key)


def _training_key(training: RunConfig) -> str:
    # Validation answers with these parameters, and the artifact has them for its own.
    generation = training.generation.model_dump(mode="json", exclude_unset=True)
    decides = {name: _dump(training)[name] for name in _OF_TRAINING} | _files(training.dataset)
    return _hash(decides | ({"generation": generation} if generation else {}))


def _of_generation(changes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if section == "generation":
            found |= {name: value} if name else value
    return found


def _measured_config(origin: _Origin, artifact: str, changes: Mapping[str, Any], overrides: list[str]) -> RunConfig:
    for key in changes:
        if key.partition(".")[0] not in _OF_MEASURING:
            raise ConfigError(
                f"{artifact} is an artifact, which is not trained here: only keys of generation and evaluation can be "
                "changed. Name a config instead, or give the key to the other systems alone",
                key=key,
            )
    own = artifact_config(open_artifact(locate(artifact)), artifact)
    return build_section(RunConfig, own.model_dump(mode="json", exclude_unset=True), overrides)


def _precision(origin: _Origin, value: Any) -> WeightPrecision:
    known = get_args(WeightPrecision)
    if value not in known:
        raise origin.wrong(ConfigError(f"{value!r}: expected {', '.join(known)}", key=PRECISION))
    found: WeightPrecision = value
    return found


def _files(dataset: DatasetConfig) -> dict[str, str]:
    """Hashes of the data files, so that other content under the same name is measured anew."""
    names = (dataset.train_file, dataset.validation_file, dataset.test_file)
    places = [Path(name) for name in names if name is not None]
    return {str(place): hashlib.sha256(place.read_bytes()).hexdigest() for place in places if place.is_file()}


def _dump(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def short(key: str) -> str:
    """The last part of a dotted key, for people: ``learning rate``."""
    return key.rpartition(".")[2].replace("_", " ")


def value_text(value: Any) -> str:
    """A value that varies, as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
