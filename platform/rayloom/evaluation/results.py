"""What an evaluation finds out: frozen values that go to JSON and back."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    # Infinite perplexities must survive JSON, which has no word for them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Prediction(_Record):
    """One row, answered."""

    row: int
    """Place in the split, from 0."""
    input: str
    context: str | None = None
    reference: str
    """Empty for language modelling."""
    prediction: str
    rougeL: float | None = None  # noqa: N815 - the metric's name
    """F1 of this row, 0 to 1."""
    exact_match: bool | None = None
    finish_reason: str = "stop"
    scores: dict[str, float] = Field(default_factory=dict)
    """All scores of this row, those of custom metrics included; empty without a reference."""


class Spread(_Record):
    """A confidence interval of a figure."""

    low: float
    high: float


class SliceResult(_Record):
    """The rows of a split that have one value in a column."""

    column: str
    value: str
    num_rows: int
    metrics: dict[str, float]
    intervals: dict[str, Spread] = Field(default_factory=dict)


class Setting(_Record):
    """The same rows, answered with other generation parameters."""

    parameters: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, Spread] = Field(default_factory=dict)
    seconds: float
    """Wall-clock time of generating all answers."""
    num_rows: int

    @property
    def seconds_per_row(self) -> float:
        """Mean wall-clock time of an answer."""
        return self.seconds / max(1, self.num_rows)


class Significance(_Record):
    """A paired test of a metric against another system on the same rows."""

    difference: float
    """This system minus the other."""
    low: float
    """Of the difference's confidence interval."""
    high: float
    p_value: float
    """Two-sided."""
    num_rows: int


class SplitResult(_Record):
    """One split, measured."""

    name: str
    num_rows: int
    """Rows that were generated for."""
    num_rows_total: int
    """Rows of the whole split."""
    metrics: dict[str, float]
    """``loss`` and ``perplexity``; with references also ROUGE, BLEU and exact match."""
    num_target_tokens: int
    """Tokens that loss and perplexity are means over."""
    predictions: list[Prediction] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """What happened to rows on the way (cut, dropped)."""
    intervals: dict[str, Spread] = Field(default_factory=dict)
    """Confidence intervals of the metrics, by bootstrap over rows."""
    row_losses: list[tuple[float, int]] = Field(default_factory=list)
    """Of each row: summed negative log-likelihood in nats, and target tokens."""
    rows_hash: str = ""
    """SHA-256 of what the rows ask and answer; empty in reports of earlier versions."""
    slices: list[SliceResult] = Field(default_factory=list)
    """The metrics of the rows that share a value, by ``evaluation.slice_by``."""
    settings: list[Setting] = Field(default_factory=list)
    """The same rows with other generation parameters, by ``evaluation.sweep``."""
    seconds: float | None = None
    """Wall-clock time of generating all answers."""

    def best(self, count: int) -> list[Prediction]:
        """Predictions with the highest ROUGE-L, best first."""
        return sorted(self._scored(), key=lambda p: (-(p.rougeL or 0.0), p.row))[:count]

    def worst(self, count: int) -> list[Prediction]:
        """Predictions with the lowest ROUGE-L, worst first."""
        return sorted(self._scored(), key=lambda p: (p.rougeL or 0.0, p.row))[:count]

    def _scored(self) -> list[Prediction]:
        return [prediction for prediction in self.predictions if prediction.rougeL is not None]


class Throughput(_Record):
    """Speed at one batch size."""

    batch_size: int
    prompts_per_s: float
    tokens_per_s: float
    """Generated tokens."""


class Resources(_Record):
    """What the model costs."""

    device: str
    num_parameters: int | None = None
    """None in bf16 and int8, where only the engine's weights are kept."""
    dtype: str
    size_on_disk_bytes: int | None = None
    """All files of the artifact; None where the model is no folder."""
    peak_host_bytes: int | None = None
    """Most resident memory of this process so far."""
    peak_gpu_bytes: int | None = None
    """Most memory that tensors took on the GPU; None without one."""
    latency_p50_s: float | None = None
    """One prompt at a time: median."""
    latency_p95_s: float | None = None
    num_latency_prompts: int = 0
    throughput: list[Throughput] = Field(default_factory=list)
    training: dict[str, float] = Field(default_factory=dict)
    """What training cost, as the artifact recorded it (``train_s``, ``tokens_per_s``, …)."""


class EvaluationResult(_Record):
    """A whole evaluation."""

    model: str
    task: str
    family: str
    created: str
    """ISO 8601, UTC."""
    splits: list[SplitResult]
    resources: Resources
    generation: dict[str, Any]
    """Generation parameters that were set."""
    evaluation: dict[str, Any]
    """The evaluation section of the config."""
    artifact: dict[str, Any] | None = None
    """Path, hashes and version of the artifact; None for a plain model."""
    random_init: bool = False
    """The weights did not start from a pretrained model."""
    template: dict[str, Any] = Field(default_factory=dict)
    """The prompt template."""
    signatures: dict[str, str] = Field(default_factory=dict)
    """How sacrebleu counted, in its own words."""

    @property
    def headline(self) -> SplitResult:
        """The split that a reader wants first: test if measured, else the last."""
        return next((split for split in self.splits if split.name == "test"), self.splits[-1])


class ReportDocument(_Record):
    """The content of ``report.json``."""

    result: EvaluationResult
    baseline: EvaluationResult | None = None
    """The untuned model."""
    significance: dict[str, dict[str, Significance]] = Field(default_factory=dict)
    """By split and metric: whether the model differs from the untuned one."""
    history: list[dict[str, Any]] = Field(default_factory=list)
    """Records of training."""
