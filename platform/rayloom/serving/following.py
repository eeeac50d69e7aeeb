"""Models that follow a stage of the registry: what it holds now, and the way from one version to the next.

A new version is opened beside the old one, and takes calls once it is ready; see `deploying` for how. What is decided
here is which version should be served. One that cannot be opened is left alone until the stage holds another, or ten
minutes have passed: it may have been the cluster's fault. One whose replicas were lost is tried again sooner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from rayloom.config import ServingConfig
from rayloom.registry import is_reference, open_registry, parse_reference
from rayloom.serving.calls import Following

logger = logging.getLogger(__name__)

_AGAIN_S = 600.0
_AFTER_LOSS_S = 15.0
"""Doubled with each try: what kills processes may be the version itself."""


class ReplicasLostError(RuntimeError):
    """New replicas did not fail to open, but their processes were lost, too often for Serve to go on."""


class OvertakenError(RuntimeError):
    """The stage held another version before this one was served."""


@dataclass(frozen=True)
class Source:
    """What a model is opened from.

    Attributes:
        artifact: Folder, URI or hub name.
        adapters: Folder or URI of each adapter.
        version: How people call it: ``qa@3``, with the versions of adapters that follow a stage as well.
    """

    artifact: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


Sources: TypeAlias = Mapping[str, Source]
"""Of each model by its name."""


def follows_stage(config: ServingConfig) -> bool:
    """Whether what a single model is opened from may change while it is served."""
    targets = (config.artifact, *config.adapters.values())
    return config.follow_stages_s is not None and any(
        _is_registered(target) and parse_reference(target).stage is not None for target in targets
    )


def source_of(config: ServingConfig, registry: str | None = None) -> Source:
    """What a single model is to be opened from now.

    Args:
        config: Of the model.
        registry: Place of the registry; the default one where not given.

    Raises:
        RegistryError: There is no such version.
    """
    names = dict.fromkeys((config.artifact, *config.adapters.values()))
    found = {name: _resolved(name, registry) for name in names}
    versions = [version for version, _ in found.values() if version is not None]
    adapters = {name: found[target][1] for name, target in config.adapters.items()}
    return Source(found[config.artifact][1], adapters, ", ".join(versions) or Path(config.artifact).name)


def pinned(config: ServingConfig, source: Source) -> ServingConfig:
    """A single model's config with nothing left to look up."""
    return config.model_copy(update={"artifact": source.artifact, "adapters": dict(source.adapters)})


class Deployer(Protocol):
    """Brings sources into service."""

    def __call__(self, sources: Sources, is_wanted: Callable[[], bool]) -> None:
        """Serve these; returns when they take calls.

        Args:
            sources: What to serve.
            is_wanted: Whether they still should be; asked now and then on the way, which may have no end.

        Raises:
            OvertakenError: They should not any more.
            ReplicasLostError: Processes were lost on the way.
            Exception: Whatever else kept one of them from that.
        """
        ...


@dataclass(frozen=True)
class _Refusal:
    """A source that could not be served: not tried again before `until`, by the follower's clock."""

    source: Source
    until: float
    num_lost: int
    """Tries in a row that were lost with their replicas."""


class Follower:
    """Keeps what is served at what the stages hold.

    Args:
        current: What is served.
        followed: The models that follow a stage.
        look: What one of these should be served from.
        deploy: Brings it there.
        clock: Seconds; injected by tests.
    """

    def __init__(
        self,
        current: Sources,
        followed: Collection[str],
        look: Callable[[str], Source],
        deploy: Deployer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._current, self._followed, self._look, self._deploy = dict(current), followed, look, deploy
        self._clock = clock
        self._refused: dict[str, _Refusal] = {}
        self._failures: dict[str, str] = {}
        self._unread: dict[str, str] = {}

    def states(self) -> Mapping[str, Following]:
        """What every followed model is at. Any thread may ask."""
        failures = {**self._failures, **self._unread}
        return {name: Following(self._current[name].version, failures.get(name)) for name in self._followed}

    def step(self) -> None:
        """Look once, and go to where the stages are, model by model."""
        for name in self._followed:
            source = self._wanted(name)
            if source is None:
                continue
            if source == self._current[name]:
                self._refused.pop(name, None)
                self._failures.pop(name, None)
            elif not self._was_refused(name, source):
                self._change(name, source)

    def _wanted(self, name: str) -> Source | None:
        """What a model should be served from; None while nobody can tell. That is no other model's trouble."""
        try:
            source = self._look(name)
        except Exception as error:  # whatever it is, the thread that follows must not end by it
            if name not in self._unread:
                logger.exception("the registry does not say what %s should be, so it stays", name or "the model")
            self._unread[name] = f"the registry does not say what to serve: {type(error).__name__}"
            return None
        self._unread.pop(name, None)
        return source

    def _was_refused(self, name: str, source: Source) -> bool:
        """Whether it did not open a short while ago."""
        refused = self._refused.get(name)
        return refused is not None and source == refused.source and self._clock() < refused.until

    def _change(self, name: str, source: Source) -> None:
        before = self._current[name]
        logger.info("%s: from %s to %s", name or "the model", before.version, source.version)
        try:
            self._deploy({**self._current, name: source}, lambda: self._wanted(name) in (source, None))
        except OvertakenError:
            logger.info("%s was overtaken before it was served; %s goes on", source.version, before.version)
            self._restore()
            return
        except Exception as error:
            logger.exception("%s could not be opened; %s goes on", source.version, before.version)
            self._refused[name] = self._refusal(name, source, error)
            self._failures[name] = f"{source.version} could not be opened: {type(error).__name__}"
            self._restore()
            return
        self._current[name] = source
        self._refused.pop(name, None)
        self._failures.pop(name, None)
        logger.info("%s: %s is served", name or "the model", source.version)

    def _refusal(self, name: str, source: Source, error: Exception) -> _Refusal:
        """How long the source is left alone after this error."""
        now, last = self._clock(), self._refused.get(name)
        if not isinstance(error, ReplicasLostError):
            return _Refusal(source, now + _AGAIN_S, 0)
        num_lost = 1 + (last.num_lost if last is not None and last.source == source else 0)
        return _Refusal(source, now + min(_AGAIN_S, _AFTER_LOSS_S * 2.0 ** (num_lost - 1)), num_lost)

    def _restore(self) -> None:
        """Make what is served the goal again, or it would not be replaced if it were lost."""
        try:
            self._deploy(self._current, lambda: True)
        except Exception:
            logger.exception("the versions before could not be made the goal again; they are as long as they live")


def _is_registered(target: str) -> bool:
    return is_reference(target) and not Path(target).exists()


def _resolved(target: str, place: str | None) -> tuple[str | None, str]:
    """The version that a target is, if it is one, and where it lies."""
    if not _is_registered(target):
        return None, target
    registry = open_registry(place)
    version = registry.get(target).name  # the stage may change between two looks; a version does not
    return version, registry.resolve(version)
