"""Config of the Serve application: the ``args`` of a file in ``serve_configs/``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rayloom.config.base import Section
from rayloom.config.generation import GenerationChanges

WeightPrecision = Literal["fp32", "bf16", "int8"]
EngineKind = Literal["rayloom", "vllm"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class AutoscalingConfig(Section):
    """Ray Serve's autoscaling, by its own names; and by tokens, which is Rayloom's."""

    min_replicas: int = Field(1, ge=0)
    """Replicas when idle."""
    initial_replicas: int | None = Field(None, ge=0)
    """Replicas at the start."""
    max_replicas: int = Field(1, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(16.0, gt=0.0)
    """Requests in flight per replica that scaling aims at, where it does not go by tokens."""
    target_tokens: int | None = Field(None, ge=1)
    """Tokens in flight per replica that scaling aims at: of a call its prompt's, and as many as it may write. With it,
    scaling goes by tokens and by the places of the batch that are taken, and no more by requests."""
    target_slots: float = Field(0.8, gt=0.0, le=1.0)
    """Share of the batch's places in use that scaling aims at. Only with `target_tokens`."""
    upscale_delay_s: float = Field(10.0, ge=0.0)
    """Seconds of overload before a replica is added."""
    downscale_delay_s: float = Field(120.0, ge=0.0)
    """Seconds of idleness before one is taken away."""
    downscale_to_zero_delay_s: float | None = Field(None, ge=0.0)
    """Seconds of idleness before the last one is taken away; as `downscale_delay_s` where not given."""
    look_back_period_s: float = Field(30.0, gt=10.0)
    """Seconds that load is averaged over; Serve measures it every ten."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        if "target_slots" in self.model_fields_set and self.target_tokens is None:
            raise ValueError("target_slots only matters when scaling goes by tokens: give target_tokens, too")
        return self


class RouteConfig(Section):
    """A name that stands for several models."""

    split: dict[str, float] = Field(min_length=1)
    """Models or adapters, and each one's share of the requests. Shares sum up to 1; 0 is no traffic for now."""
    shadow: str | None = None
    """A model or adapter that gets a copy of every request. What it answers is thrown away."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(share < 0.0 for share in self.split.values()):
            raise ValueError("split: a share cannot be negative")
        if not math.isclose(total := sum(self.split.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"split: the shares sum up to {total:g}; they are to be 1 in all")
        return self


class ServedModelConfig(Section):
    """One model of several: its replicas, and what they open."""

    artifact: str
    """Folder or URI of the artifact, a registered version (`qa@3`), a stage of the registry (`qa@production`), which is
    followed, or a hub name."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters of this model by the names that clients call them; each the folder or URI of an artifact, or a
    registered version or stage. They share the model's replicas and batch."""
    max_adapters: int = Field(32, ge=1)
    """Most adapters in memory at once; others come when they are asked for."""
    num_cpus: float = Field(1.0, ge=0.0)
    """CPUs per replica."""
    num_gpus: float = Field(0.0, ge=0.0)
    """GPUs per replica."""
    autoscaling: AutoscalingConfig = Field(default_factory=AutoscalingConfig)
    max_batch_size: int = Field(16, ge=1)
    """Most sequences (beams and answers counted one by one) that are generated together."""
    precision: WeightPrecision = "fp32"
    """Of the weights: ``fp32``, ``bf16`` or ``int8``. Only fp32 promises the very tokens of evaluation."""
    engine: EngineKind = "rayloom"
    """What computes: Rayloom's engine, or vLLM, which serves decoder models, runs in an environment of its own (the
    variable RAYLOOM_VLLM_PYTHON names its Python), has fewer parameters, and is let in only if the golden prompts
    replay to the token."""
    cache_gib: float | None = Field(None, gt=0.0)
    """Memory for keys and values per replica, in GiB; what max_batch_size sequences of full length take, but
    at most a quarter of the free memory (on CPUs 2 GiB), where not given."""
    max_queued_requests: int = Field(256, ge=-1)
    """Calls (prompts counted one by one) that may wait for a replica; more are refused with 429. -1 for no bound."""
    generation: GenerationChanges = Field(default_factory=dict)
    """Changes to the artifact's generation parameters."""
    replay_golden: bool = True
    """Replay the golden prompts before a replica takes traffic."""


class ServingConfig(ServedModelConfig):
    """One served model; or several, with `models`."""

    artifact: str = ""
    """Folder or URI of the artifact, a registered version (`qa@3`), a stage of the registry (`qa@production`), which is
    followed, or a hub name. Empty where there are `models`."""
    name: str | None = None
    """What clients call the model; the artifact's own name where not given."""
    models: dict[str, ServedModelConfig] = Field(default_factory=dict)
    """Several models by the names that clients call them. What stands beside `models` holds for each of them, unless it
    says otherwise."""
    routes: dict[str, RouteConfig] = Field(default_factory=dict)
    """Names that stand for several models: A/B splits, and shadow traffic."""
    follow_stages_s: float | None = Field(15.0, gt=0.0)
    """Seconds between looks at the registry for another version in a stage that is followed. Null: the version that was
    there at the start stays."""
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
    keys_file: str | None = None
    """File of API keys, which `rayloom keys` writes; every request then needs one. The machine that answers HTTP reads
    it, and notices when it changes."""
    allow_anonymous: bool = False
    """Serve without API keys on other addresses than loopback, to whoever reaches them."""
    cors_origins: tuple[str, ...] = ()
    """Web sites whose pages may call from a browser, such as ``https://example.org``; ``*`` for all."""
    page: bool = False
    """A page at `/ui` to try the models with: prompts, sliders, comparisons, chat. Needs the extra `page`."""
    log_format: Literal["text", "json"] = "text"
    """How the log of requests is written: a line of text or a JSON object for each."""
    log_file: str | None = None
    """File, by its absolute path on the machine that answers HTTP, that the log of requests goes to; where not given
    stderr, which Ray keeps among its own logs."""
    log_prompts: bool = False
    """Write prompts into the log of requests. They may hold what nobody but their writers should read."""
    traces_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP), such as ``http://localhost:4318``, that gets a span of
    every request; what `OTEL_EXPORTER_OTLP_ENDPOINT` says where not given. Needs the extra `tracing`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keys_file is not None and self.allow_anonymous:
            raise ValueError("allow_anonymous means no API keys, keys_file names some: leave one of them out")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s?#]+", origin):
                raise ValueError(f"cors_origins: '{origin}' is to look like https://example.org, without a path")
        self._check_observing()
        self._check_models()
        self._check_names()
        return self

    def served(self) -> Mapping[str, ServingConfig]:
        """Each model by its name, as if it were the only one; the name is empty if the artifact is to say it."""
        alone: dict[str, Any] = {"models": {}, "routes": {}}
        if not self.models:
            return {self.name or "": self.model_copy(update=alone)}
        return {
            name: self.model_copy(
                update={**alone, **{field: getattr(model, field) for field in model.model_fields_set}, "name": name}
            )
            for name, model in self.models.items()
        }

    def _check_observing(self) -> None:
        if self.log_file is not None and not self.log_file.startswith("/"):
            raise ValueError(f"log_file: '{self.log_file}' is to be an absolute path: Ray chooses the folder")
        if self.traces_endpoint is not None and not re.fullmatch(r"https?://\S+", self.traces_endpoint):
            raise ValueError(f"traces_endpoint: '{self.traces_endpoint}' is to look like http://localhost:4318")

    def _check_models(self) -> None:
        if bool(self.artifact) == bool(self.models):
            raise ValueError("give an artifact, or models: one of the two")
        for field in ("name", "adapters"):
            if self.models and getattr(self, field):
                raise ValueError(f"{field} is a single model's: beside models, say it in one of them")

    def _check_names(self) -> None:
        names = [name for name in (self.name, *self.models) if name is not None]
        names += [adapter for model in self.served().values() for adapter in model.adapters]
        for name in (*names, *self.routes):
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot be a model's name: letters, digits, '.', '_' and '-', at most 100")
            if (*names, *self.routes).count(name) > 1:
                raise ValueError(f"the name '{name}' is given twice among models, adapters and routes")
        for route, config in self.routes.items():
            for arm in (*config.split, *([config.shadow] if config.shadow is not None else [])):
                if arm not in names:
                    raise ValueError(f"routes.{route}: there is no model '{arm}'; there are: {', '.join(names) or '-'}")
