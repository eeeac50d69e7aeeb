"""Config of evaluation."""

from __future__ import annotations

from pydantic import Field

from rayloom.config.base import Section


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
    num_examples: int = Field(10, ge=0)
    """Best and worst predictions that the report shows."""
    latency_prompts: int = Field(16, ge=0)
    """Prompts that latency (p50, p95) and throughput are measured on; 0 to skip."""
    throughput_batch_sizes: list[int] = [1, 4, 16]
    """Batch sizes that prompts per second are measured at."""
