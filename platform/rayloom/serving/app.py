"""The Ray Serve application: an HTTP ingress in front of autoscaled model replicas.

``import_path: rayloom.serving.app:build`` in a Serve config file; its ``args`` are a `ServingConfig`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from rayloom.config import ServingConfig, validate
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.answering import answer, answer_in_parts, tokens_of
from rayloom.serving.backend import ReplicaBackend
from rayloom.serving.calls import Call, Event, ModelInfo, Outcome, Problem, ServedModel, TextCall, Tokens
from rayloom.serving.exposure import check_exposure
from rayloom.serving.limits import Limits
from rayloom.serving.routes import create_app

_UNBOUNDED = 100_000

ModelFactory: TypeAlias = Callable[[ServingConfig], ServedModel]


def build(args: Mapping[str, Any]) -> Application:
    """The application that a Serve config file's ``args`` describe.

    Args:
        args: Fields of `ServingConfig`.

    Raises:
        ConfigError: Names the first argument that is wrong, and how to mend it.
    """
    return application(validate(ServingConfig, args))


def application(config: ServingConfig, *, open_model: ModelFactory | None = None) -> Application:
    """Bind the deployments.

    Args:
        config: What to serve, and how.
        open_model: Opens the model inside a replica; a `TextGenerator` where not given.
    """
    replica: Any = ModelReplica  # Serve's decorators make deployments of classes, which their types do not say
    ingress: Any = HttpIngress
    model = replica.options(**_model_options(config)).bind(config, open_model or open_text_generator)
    app: Application = ingress.options(**_ingress_options(config)).bind(model, config)
    return app


def open_text_generator(config: ServingConfig) -> ServedModel:
    """Open the artifact for serving. Imports torch, so only replicas call it."""
    from rayloom.serving.model import TextGeneratorModel

    return TextGeneratorModel.open(config)


@serve.deployment(name="Model")
class ModelReplica:
    """One copy of the model. Calls join and leave its batch at any step."""

    def __init__(self, config: ServingConfig, open_model: ModelFactory) -> None:
        logging.getLogger("rayloom").setLevel(logging.INFO)
        self._model = open_model(config)

    async def complete(self, call: Call) -> Outcome:
        """The outcome of a call. Serve cancels it when nobody waits any longer, and that frees its place."""
        return await answer(self._model, call)

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """As `complete`, part by part."""
        async with aclosing(answer_in_parts(self._model, call)) as events:
            async for event in events:
                yield event

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """Encode or decode."""
        return tokens_of(self._model, call)

    def describe(self) -> ModelInfo:
        """What is served."""
        return self._model.info


@serve.deployment(name="Http")
@serve.ingress()
class HttpIngress:
    """Checks requests and hands them to the model replicas; needs no CPU of its own."""

    def __init__(self, model: DeploymentHandle[Any], config: ServingConfig) -> None:
        self._model, self._config = model, config

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica stands."""
        config = self._config
        backend = ReplicaBackend(
            self._model,
            app_name=serve.get_replica_context().app_name,
            may_be_idle=config.autoscaling.min_replicas == 0,
        )
        limits = Limits(
            request_timeout_s=config.request_timeout_s,
            max_prompt_chars=config.max_prompt_chars,
            max_sequences=config.max_sequences,
            max_prompts=config.max_prompts,
            max_in_flight=_most_in_flight(config),
            max_body_bytes=config.max_body_bytes,
        )
        return create_app(backend, limits, access=_access(config), cors_origins=config.cors_origins)


def _access(config: ServingConfig) -> Access | None:
    """The door. Where it is known that others than this machine can reach it, it may not stand open by oversight."""
    if config.keys_file is not None:
        return Access(LiveKeys(config.keys_file))
    check_exposure(config, _address())
    return None


def _address() -> str | None:
    """Where Serve's proxies listen, if they do. Ray tells in no public way."""
    client = _get_global_client()
    host: str | None = client.http_config.host if client else None
    return host


def _model_options(config: ServingConfig) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "autoscaling_config": config.autoscaling.model_dump(exclude_none=True),
        "max_ongoing_requests": _held_by_replica(config),
        "max_queued_requests": config.max_queued_requests,
        # Often, so that a lost replica is noticed, and replaced, soon.
        "health_check_period_s": 2.0,
        # A replica that is replaced first finishes what it has begun.
        "graceful_shutdown_timeout_s": config.request_timeout_s,
    }


def _ingress_options(config: ServingConfig) -> dict[str, Any]:
    # Calls are refused in the ingress, with a reason; so it takes in more requests than calls may be in flight.
    most = _most_in_flight(config)
    return {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _UNBOUNDED if most is None else 2 * most + 64,
        "graceful_shutdown_timeout_s": config.request_timeout_s,
    }


def _most_in_flight(config: ServingConfig) -> int | None:
    """Calls that all replicas hold, and those that may wait for one."""
    if config.max_queued_requests < 0:
        return None
    return config.max_queued_requests + config.autoscaling.max_replicas * _calls_per_replica(config)


def _held_by_replica(config: ServingConfig) -> int:
    """Calls that a replica takes in.

    With keys it is all of them: owners take turns in the engine, while calls before it wait in the order of arrival, so
    that a flood would be before everybody else.
    """
    if config.keys_file is None:
        return _calls_per_replica(config)
    most = _most_in_flight(config)
    return _UNBOUNDED if most is None else most


def _calls_per_replica(config: ServingConfig) -> int:
    """As many waiting in the engine as it runs at once; never fewer than autoscaling aims at."""
    return max(2 * config.max_batch_size, math.ceil(config.autoscaling.target_ongoing_requests))
