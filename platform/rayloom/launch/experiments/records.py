"""What an experiment has found out so far, as frozen values that go to JSON and back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rayloom.evaluation.results import EvaluationResult


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Provenance(_Record):
    """What figures were taken on."""

    machine: str
    """Processor, cores, memory, GPU."""
    versions: dict[str, str]
    """Of Python and the libraries that cost time."""
    code: str
    """Version of rayloom, with its commit."""
    load: float
    """Load average of the last minute before the command started: what others did on the machine."""
    at: str
    """ISO 8601, UTC."""


class Trained(_Record):
    """A finished training run."""

    artifact: str
    digest: str
    """Of its artifact's manifest."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Of training, and of validation at the best checkpoint."""
    rows: dict[str, int] = Field(default_factory=dict)
    """Rows by split."""
    data_hash: str
    base: str
    """The model that training started from."""
    seconds: float
    """From the call to the artifact, workers' start included."""
    provenance: Provenance


class CellRecord(_Record):
    """A cell, done."""

    name: str
    trained: Trained | None = None
    """None for an artifact that was there, and where training failed."""
    result: EvaluationResult | None = None
    """None where nothing was evaluated."""
    error: str | None = None
    """What ended it. Such a cell is tried again."""
    seconds: float
    """Of measuring; training that other cells share is not in it."""
    provenance: Provenance
