"""Config of the Serve application: the ``args`` of a file in ``serve_configs/``."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from rayloom.config.base import Section
from rayloom.config.generation import GenerationChanges

WeightPrecision = Literal["fp32", "bf16", "int8"]


class AutoscalingConfig(Section):
    """Ray Serve's autoscaling, by its own names."""

    min_replicas: int = Field(1, ge=0)
    """Replicas when idle."""
    initial_replicas: int | None = Field(None, ge=0)
    """Replicas at the start."""
    max_replicas: int = Field(1, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(16.0, gt=0.0)
    """Requests in flight per replica that scaling aims at."""
    upscale_delay_s: float = Field(10.0, ge=0.0)
    """Seconds of overload before a replica is added."""
    downscale_delay_s: float = Field(120.0, ge=0.0)
    """Seconds of idleness before one is taken away."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self


class ServingConfig(Section):
    """One served model."""

    artifact: str
    """Folder or URI of the artifact."""
    num_cpus: float = Field(1.0, ge=0.0)
    """CPUs per replica."""
    num_gpus: float = Field(0.0, ge=0.0)
    """GPUs per replica."""
    autoscaling: AutoscalingConfig = Field(default_factory=AutoscalingConfig)
    max_batch_size: int = Field(16, ge=1)
    """Most sequences (beams and answers counted one by one) that are generated together."""
    precision: WeightPrecision = "fp32"
    """Of the weights: ``fp32``, ``bf16`` or ``int8``. Only fp32 promises the very tokens of evaluation."""
    cache_gib: float | None = Field(None, gt=0.0)
    """Memory for keys and values per replica, in GiB; what max_batch_size sequences of full length take, but
    at most a quarter of the free memory (on CPUs 2 GiB), where not given."""
    max_queued_requests: int = Field(256, ge=-1)
    """Calls (prompts counted one by one) that may wait for a replica; more are refused with 429. -1 for no bound."""
    request_timeout_s: float = Field(120.0, gt=0.0)
    """Seconds after which an unanswered request ends with 504. A request may ask for less (`X-Request-Timeout`)."""
    max_body_bytes: int = Field(8 * 2**20, ge=1024)
    """Largest body of a request."""
    max_prompt_chars: int = Field(100_000, ge=1)
    """Longest accepted prompt or context, in characters; of token ids as many."""
    max_prompts: int = Field(128, ge=1)
    """Most prompts of one request to `/v1/completions`."""
    max_sequences: int = Field(16, ge=1)
    """Most beams, and most answers per prompt, that a request may ask for."""
    generation: GenerationChanges = Field(default_factory=dict)
    """Changes to the artifact's generation parameters."""
    replay_golden: bool = True
    """Replay the golden prompts before a replica takes traffic."""
    keys_file: str | None = None
    """File of API keys, which `rayloom keys` writes; every request then needs one. The machine that answers HTTP reads
    it, and notices when it changes."""
    allow_anonymous: bool = False
    """Serve without API keys on other addresses than loopback, to whoever reaches them."""
    cors_origins: tuple[str, ...] = ()
    """Web sites whose pages may call from a browser, such as ``https://example.org``; ``*`` for all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keys_file is not None and self.allow_anonymous:
            raise ValueError("allow_anonymous means no API keys, keys_file names some: leave one of them out")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s?#]+", origin):
                raise ValueError(f"cors_origins: '{origin}' is to look like https://example.org, without a path")
        return self
