"""Config of the gate that a version passes on its way into production."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayloom.config.base import Section


class Threshold(Section):
    """Bounds of a metric, both included."""

    min: float | None = None
    """Least value that passes."""
    max: float | None = None
    """Greatest value that passes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a threshold needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}: nothing would pass")
        return self


class AgainstProduction(Section):
    """A paired test on the scores of the rows that both versions were measured on."""

    metric: str = "rougeL"
    """Score of a row, such as ``rougeL``, ``token_f1``, ``exact_match``, ``nll`` (of which less is better)."""
    test: Literal["randomization", "bootstrap"] = "randomization"
    """Approximate randomization (Noreen, 1989) or paired bootstrap (Koehn, 2004)."""
    alpha: float = Field(0.05, gt=0.0, lt=1.0)
    """A loss whose p-value (one-sided) is under this does not pass."""
    max_loss: float | None = Field(None, ge=0.0)
    """A mean loss above this does not pass either, significant or not: few rows make nothing significant."""
    min_rows: int = Field(20, ge=2)
    """Fewest rows that such a test is believed on."""


class GateConfig(Section):
    """What a version has to show before it may go into production."""

    split: Literal["train", "validation", "test"] = "test"
    """Split of the evaluation report that metrics and rows are taken from."""
    metrics: dict[str, Threshold] = Field(default_factory=dict)
    """Bounds by metric of the report, such as ``rougeL: {min: 0.25}``."""
    against_production: AgainstProduction | None = None
    """No significant loss against the version in production. Passes where there is none yet."""
    golden_replay: bool = True
    """The artifact's golden prompts give the recorded tokens on the machine that judges."""
    max_latency_p50_s: float | None = Field(None, gt=0.0)
    """Median latency of the report, in seconds."""
    max_latency_p95_s: float | None = Field(None, gt=0.0)
    """95th percentile of the report's latencies, in seconds."""
