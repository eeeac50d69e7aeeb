"""What the registry knows, as frozen values that go to JSON and back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["none", "candidate", "production", "archived"]


class _Record(BaseModel):
    # Infinite metrics (an overflown perplexity) must survive JSON, which has no word for them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Lineage(_Record):
    """Where a version comes from."""

    run: str
    """Name of the training run."""
    source: str
    """Folder or URI that the artifact was registered from."""
    created: str
    """When the artifact was published: ISO 8601, UTC."""
    data_hash: str
    config_hash: str
    config: dict[str, Any]
    """The run's resolved config."""
    code_version: str
    """Version of the rayloom package that trained it."""
    commit: str | None = None
    """Git commit of that code; None where it was installed as a package."""
    base: str | None = None
    """Base model of an adapter; None for a full model."""
    parent: str | None = None
    """The version that training started from, such as ``qa@2``."""


class Report(_Record):
    """An evaluation report that belongs to a version."""

    path: str
    """The registry's own copy of ``report.json``."""
    sha256: str
    metrics: dict[str, float]
    """By split and name, such as ``test.rougeL``."""


class Version(_Record):
    """One version of a model. Everything but its stage, report and note stays as it was registered."""

    model: str
    version: int
    stage: Stage = "none"
    digest: str
    """SHA-256 of the artifact's manifest, which holds the hash of every other file."""
    location: str
    """Folder or URI of the artifact."""
    registered: str
    """ISO 8601, UTC."""
    lineage: Lineage
    metrics: dict[str, float] = Field(default_factory=dict)
    """Those that the artifact carries (of its training)."""
    report: Report | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """How it is referred to: ``qa@3``."""
        return f"{self.model}@{self.version}"


class Check(_Record):
    """One thing that the gate looked at."""

    name: str
    passed: bool
    detail: str
    """What was found, what was wanted, and how to mend it."""


class Verdict(_Record):
    """What the gate said of a version, and all that this depended on."""

    id: int = 0
    """Number in the registry; 0 before it is recorded."""
    model: str
    version: int
    digest: str
    """Of the manifest that was judged."""
    production: int | None
    """The version that was in production, which the judged one was compared with."""
    gate_hash: str
    report_hash: str | None
    """Of the evaluation report that was judged."""
    production_report_hash: str | None = None
    """Of the report of the version in production, which the judged one was compared with.

    None: it had none, or the verdict is older than this field (MLflow's log is read from its start each time).
    """
    checks: tuple[Check, ...]
    judged: str
    """ISO 8601, UTC."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


class Change(_Record):
    """An entry of a model's history."""

    at: str
    """ISO 8601, UTC."""
    who: str
    """User and machine."""
    version: int | None
    """None for a change of the model's gate."""
    action: str
    detail: str = ""


class ModelSummary(_Record):
    """A model at a glance."""

    model: str
    num_versions: int
    newest: int | None
    production: int | None
    candidates: tuple[int, ...] = ()
