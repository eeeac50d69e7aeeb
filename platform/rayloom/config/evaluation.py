"""Config of evaluation."""

from __future__ import annotations

from pydantic import Field

from rayloom.config.base import Section
from rayloom.config.generation import GenerationChanges


class EvaluationConfig(Section):
    """What is measured, on how many rows."""

    batch_size: int = Field(16, ge=1)
    """Prompts per generation batch."""
    max_rows: int | None = Field(None, ge=1)
    """Rows of each split to generate; all where not given. Perplexity uses the same rows."""
    use_stemmer: bool = True
    """ROUGE: compare stems (Porter)."""
    remove_stopwords: bool = False
    """ROUGE: leave common English words out."""
    metrics: list[str] = Field(default_factory=list)
    """Metrics of installed packages (entry points of the group ``rayloom.metrics``) to compute as well."""
    scorer: str | None = None
    """Causal model (artifact, folder, hub name or ``package:`` file) that judges answers without references: fluency,
    relevance and coherence, see quality.md. None for no such judgement."""
    slice_by: list[str] = Field(default_factory=list)
    """Columns: metrics also for the rows of each of their values (the twelve most frequent)."""
    sweep: list[GenerationChanges] = Field(default_factory=list)
    """Other generation parameters to answer the same rows with, such as ``[{num_beams: 1}, {num_beams: 4}]``: a table
    of settings, metrics and time."""
    num_resamples: int = Field(1000, ge=0)
    """Bootstrap resamples for confidence intervals and paired tests; 0 for none."""
    confidence: float = Field(0.95, gt=0.0, lt=1.0)
    """Of the intervals."""
    resampling_seed: int = Field(0, ge=0)
    """Equal seeds draw equal resamples."""
    num_examples: int = Field(10, ge=0)
    """Best and worst predictions that the report shows."""
    latency_prompts: int = Field(16, ge=0)
    """Prompts that latency (p50, p95) and throughput are measured on; 0 to skip."""
    throughput_batch_sizes: list[int] = [1, 4, 16]
    """Batch sizes that prompts per second are measured at."""
