"""Config of an experiment: a table that one command measures and writes as a page."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayloom.config.base import Section

SYSTEM, PRECISION, SEED = "system", "precision", "training.seed"
"""Names beside a training config's keys: the system's own name, and the engine's weights when it is measured."""


class ExperimentSystem(Section):
    """What is measured: a model that is trained for it, or an artifact that there is."""

    config: str | None = None
    """Training config. Relative paths start at the experiment's folder."""
    artifact: str | None = None
    """Instead: an artifact (folder or URI) or a version in the registry. Nothing is trained."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Changes to its config for this experiment, by dotted key; `precision` is that of the engine's weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.config is None) == (self.artifact is None):
            raise ValueError("give either config (what is trained) or artifact (what there is)")
        return self


class ExperimentPlot(Section):
    """The plot beside the table."""

    x: str = SYSTEM
    """Key of `vary`, or `system`."""
    y: str
    """One of the columns."""
    lines: str | None = None
    """Key of `vary`, or `system`: a line for each of its values."""


class ExperimentConfig(Section):
    """One table: systems, each with every combination of the values that vary."""

    title: str = Field(min_length=1)
    """Headline of the page."""
    about: str = ""
    """What is asked and how to read the table, in Markdown."""
    systems: dict[str, ExperimentSystem] = Field(min_length=1)
    """What is measured, by the name that the table gives it."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Changes to every system's config, by dotted key; a system's own go before them."""
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    """Values by dotted key: the table has a row for each combination. Keys of `generation` and `evaluation`, and
    `precision`, need no training of their own."""
    seeds: list[int] = Field(default_factory=list)
    """Seeds of training. With several each row is trained as often, and shows means and ranges; the config's own seed
    where not given."""
    measure: Literal["test", "validation", "none"] = "test"
    """Split that the results are evaluated on; `none` for what training alone tells."""
    columns: list[str] = Field(min_length=1)
    """Figures that the table shows: metrics of evaluation, such as `rougeL`, and costs, such as `train_s`."""
    best: str | None = None
    """Column that says which row is best; the first that is a quality where not given."""
    plot: ExperimentPlot | None = None
    """Left out by default."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Further changes under ``--quick``, which also takes only the ends of each key that varies. Such figures mean
    nothing: they show that the table can be made."""
    output: str = "docs/experiments"
    """Folder of the page, its numbers and its plot. Relative paths start at the working folder."""
    storage_path: str = "runs/experiments"
    """Folder of the runs and of what has been measured already. Relative paths start at the working folder."""

    @field_validator("vary")
    @classmethod
    def _check_values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values or any(values.count(each) > 1 for each in values):
                raise ValueError(f"'{key}' needs one value at least, and each only once")
        if SEED in value:
            raise ValueError(f"'{SEED}': give seeds instead")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each only once")
        if self.seeds and any(system.artifact is not None for system in self.systems.values()):
            raise ValueError("seeds are of training, and an artifact has been trained already: leave seeds out")
        if self.best is not None and self.best not in self.columns:
            raise ValueError(f"best: '{self.best}' is none of the columns")
        self._check_plot()
        return self

    def _check_plot(self) -> None:
        if self.plot is None:
            return
        if self.plot.y not in self.columns:
            raise ValueError(f"plot: '{self.plot.y}' is none of the columns")
        for name in (self.plot.x, self.plot.lines):
            if name not in (None, SYSTEM, *self.vary):
                raise ValueError(f"plot: '{name}' is no key of vary, nor '{SYSTEM}'")
        if self.plot.x == self.plot.lines:
            raise ValueError("plot: x and lines are the same")
