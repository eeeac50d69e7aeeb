"""From one version of a served application to the next, without a gap.

Serve replaces the replicas of a deployment when its version changes, and with a surge it opens new ones first. So every
deployment here has a version of its own, made of what it is opened from: to deploy the application again replaces what
has changed, and leaves alone what has not. A new version that fails to open stops the change; the old replicas stay.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client

from rayloom.config import ServedModelConfig, ServingConfig
from rayloom.serving.following import Follower, Sources, source_of
from rayloom.serving.rollouts import wait_out

_OF_REPLICAS = {*ServedModelConfig.model_fields, "name", "request_timeout_s"}


@dataclass(frozen=True)
class Rollout:
    """Which sources an application is deployed with.

    Attributes:
        initial: Those of its first deployment.
        sources: Those now.
        base: Version of all its deployments where Serve gave them one (`serve deploy` does): what has not changed since
            keeps it.
        registry: Place of the registry whose stages are followed; the default one where not given.
    """

    initial: Sources
    sources: Sources
    base: str | None = None
    registry: str | None = None

    @classmethod
    def first(cls, config: ServingConfig) -> Rollout:
        """Of an application that is deployed now.

        Raises:
            RegistryError: A version or stage that is not there.
        """
        sources = {name: source_of(single) for name, single in config.served().items()}
        return cls(sources, sources)

    def stamped(self, deployment: Any, config: ServingConfig, opener: Any, *, model: str | None = None) -> Any:
        """A deployment with its version.

        Args:
            deployment: As Serve's decorator makes it.
            config: All that decides what its replicas are.
            opener: Opens models there.
            model: Name of the model that they serve; None for other deployments.
        """
        is_changed = model is not None and self.sources[model] != self.initial[model]
        fields = None if model is None else _OF_REPLICAS
        version = digest_of(config, opener, fields) if self.base is None or is_changed else self.base
        return deployment.options(_internal=True, version=version)  # a public way to say it is not there any more


def digest_of(config: ServingConfig, opener: Any, fields: set[str] | None = None) -> str:
    """Changes when processes with this config have to be replaced.

    Args:
        config: What they are opened with.
        opener: Opens models there.
        fields: Of the config, those that they read; all where not given.
    """
    whole = [
        config.model_dump_json(include=fields),
        metadata.version("rayloom"),
        opener.__module__,
        opener.__qualname__,
    ]
    for place in (config.artifact, *config.adapters.values()):
        manifest = Path(place) / "manifest.json"  # the same folder may hold another artifact some day
        if "://" not in place and manifest.is_file():
            whole.append(hashlib.sha256(manifest.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()[:24]


def redeploy(app: Application, name: str, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Deploy an application over the one of this name; returns when all that changed takes calls.

    New replicas that are lost on the way are replaced, and do not end it, as long as Serve goes on.

    Args:
        app: The application.
        name: Of the one that is there.
        is_wanted: See `rollouts.wait_out`.

    Raises:
        OvertakenError: It is not wanted any more.
        ReplicasLostError: So many were lost that Serve gave the change up.
        RuntimeError: Some of it could not be opened. In both cases what was there before still takes calls.
    """
    client = _get_global_client()
    assert client is not None, "Serve runs wherever something is served"
    details = client.get_serve_details()["applications"][name]
    target = serve.RunTarget(app, name=name, route_prefix=details["route_prefix"])
    serve.run_many([target], wait_for_applications_running=False)
    wait_out(name, is_wanted=is_wanted)


class FollowLoop:
    """Lets a follower step, in a thread of its own.

    Args:
        follower: What steps.
        every_s: Seconds between two steps.
    """

    def __init__(self, follower: Follower, every_s: float) -> None:
        self._follower, self._every_s = follower, every_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="follow", daemon=True).start()

    def stop(self) -> None:
        """No step begins any more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._follower.step()
