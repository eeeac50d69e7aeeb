"""The Ray Serve application: an HTTP ingress in front of autoscaled model replicas.

``import_path: rayloom.serving.app:build`` in a Serve config file; its ``args`` are a `ServingConfig`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from rayloom.config import ServingConfig, validate
from rayloom.registry import open_registry
from rayloom.serving.access import Access, LiveKeys
from rayloom.serving.backend import ReplicaBackend
from rayloom.serving.calls import Following
from rayloom.serving.capacity import ingress_options, model_options, most_in_flight
from rayloom.serving.catalog import CatalogBackend
from rayloom.serving.deploying import FollowLoop, Rollout, digest_of, redeploy
from rayloom.serving.exposure import check_exposure
from rayloom.serving.following import Follower, Source, Sources, follows_stage, pinned, source_of
from rayloom.serving.limits import Limits
from rayloom.serving.observing.metrics import Metrics
from rayloom.serving.observing.opening import open_observer
from rayloom.serving.page.mounting import mount_page
from rayloom.serving.protocols import Backend
from rayloom.serving.replicas import ModelFactory, ModelReplica, open_text_generator
from rayloom.serving.retrying import Repeating
from rayloom.serving.rollouts import wait_answered
from rayloom.serving.routes import create_app
from rayloom.serving.splitting import SplitBackend

_FOLLOW_TIMEOUT_S = 2.0
_INFO_S = 30.0
"""Seconds until a model that may have changed is asked again what it is."""


def build(args: Mapping[str, Any]) -> Application:
    """The application that a Serve config file's ``args`` describe.

    Args:
        args: Fields of `ServingConfig`.

    Raises:
        ConfigError: Names the first argument that is wrong, and how to mend it.
        RegistryError: A version or stage that is not there.
    """
    return application(validate(ServingConfig, args))


def application(
    config: ServingConfig, *, open_model: ModelFactory | None = None, rollout: Rollout | None = None
) -> Application:
    """Bind the deployments: one for each model, the ingress, and what follows stages of the registry.

    Args:
        config: What to serve, and how.
        open_model: Opens a model inside a replica; a `TextGenerator` where not given.
        rollout: What to open; what the config means now where not given.

    Raises:
        RegistryError: A version or stage that is not there.
    """
    replica: Any = ModelReplica  # Serve's decorators make deployments of classes, which their types do not say
    ingress: Any = HttpIngress
    follower: Any = StageFollower
    open_model, rollout = open_model or open_text_generator, rollout or Rollout.first(config)
    models = {}
    for name, single in config.served().items():
        ready = pinned(single, rollout.sources[name])
        deployment = replica.options(name=f"Model-{name}" if config.models else "Model", **model_options(ready))
        models[name] = rollout.stamped(deployment, ready, open_model, model=name).bind(ready, open_model)
    follow = None
    if followed := [name for name, single in config.served().items() if follows_stage(single)]:
        deployment = rollout.stamped(follower, config, open_model)
        handles = {name: models[name] for name in followed}
        follow = deployment.bind(
            config, rollout.initial, open_model, handles, rollout.registry or open_registry().place
        )
    deployment = rollout.stamped(ingress.options(**ingress_options(config)), config, open_model)
    app: Application = deployment.bind(models, config, follow)
    return app


@serve.deployment(name="Follow", num_replicas=1, ray_actor_options={"num_cpus": 0})
class StageFollower:
    """Brings models that follow a stage of the registry to other versions."""

    _loop: FollowLoop | None = None

    def __init__(
        self,
        config: ServingConfig,
        initial: Sources,
        open_model: ModelFactory,
        followed: Mapping[str, DeploymentHandle[Any]],
        registry: str,
    ) -> None:
        logging.getLogger("rayloom").setLevel(logging.INFO)
        context, served = serve.get_replica_context(), config.served()
        own = context.code_version
        base = None if own == digest_of(config, open_model) else own

        def look(name: str) -> Source:
            return source_of(served[name], registry)

        def deploy(sources: Sources, is_wanted: Callable[[], bool]) -> None:
            rollout = Rollout(initial, sources, base, registry)
            redeploy(application(config, open_model=open_model, rollout=rollout), context.app_name, is_wanted)
            for name, handle in followed.items():
                if served[name].autoscaling.min_replicas == 0:  # nothing may have been opened yet
                    wait_answered(handle.describe.remote(), is_wanted=is_wanted)

        self._follower = Follower(initial, followed, look, deploy)
        self._loop = FollowLoop(self._follower, config.follow_stages_s or math.inf)

    def states(self) -> Mapping[str, Following]:
        """What every model that follows a stage is at."""
        return self._follower.states()

    def __del__(self) -> None:
        """Serve's last word to a replica."""
        if self._loop is not None:
            self._loop.stop()


@serve.deployment(name="Http")
@serve.ingress()
class HttpIngress:
    """Checks requests and hands them to the model replicas; needs no CPU of its own."""

    def __init__(
        self,
        models: Mapping[str, DeploymentHandle[Any]],
        config: ServingConfig,
        follow: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._models, self._config, self._follow = models, config, follow

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica stands."""
        config = self._config
        observer = open_observer(config)
        backend = self._backend(observer.metrics)
        limits = Limits(
            request_timeout_s=config.request_timeout_s,
            max_prompt_chars=config.max_prompt_chars,
            max_sequences=config.max_sequences,
            max_prompts=config.max_prompts,
            max_in_flight=most_in_flight(config),
            max_body_bytes=config.max_body_bytes,
        )
        access = _access(config)
        app = create_app(backend, limits, access=access, cors_origins=config.cors_origins, observer=observer)
        if config.page:
            mount_page(app, access)
        return app

    def _backend(self, metrics: Metrics) -> Backend:
        config, served = self._config, self._config.served()
        adapters = {adapter: name for name, single in served.items() for adapter in single.adapters}
        models = {
            name: Repeating(self._replicas(name, single), on_repeat=metrics.repeated.labels(name).inc)
            for name, single in served.items()
        }
        catalog = CatalogBackend(models, adapters, also=list(config.routes), follows=self._follows)
        if not config.routes:
            return catalog
        return SplitBackend(catalog, config.routes, metrics.arms, shadow_timeout_s=config.request_timeout_s)

    def _replicas(self, name: str, config: ServingConfig) -> ReplicaBackend:
        return ReplicaBackend(
            self._models[name],
            app_name=serve.get_replica_context().app_name,
            may_be_idle=config.autoscaling.min_replicas == 0,
            scarce=config.adapters if len(config.adapters) > config.max_adapters else (),
            info_s=_INFO_S if follows_stage(config) else math.inf,
        )

    async def _follows(self) -> Mapping[str, Following]:
        """What models that follow a stage are at; nothing is known while whoever follows it is busy or away."""
        if self._follow is None:
            return {}
        try:
            async with asyncio.timeout(_FOLLOW_TIMEOUT_S):
                states: Mapping[str, Following] = await self._follow.states.remote()
        except (TimeoutError, RayError, RayServeException):
            return {}
        return states


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
