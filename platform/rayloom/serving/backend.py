"""The model replicas as a `Backend`: a Serve handle, with Ray's errors turned into problems."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from rayloom.serving.calls import Call, Event, Figures, Health, ModelInfo, Outcome, Problem, TextCall, Tokens
from rayloom.serving.retrying import ReplicaLostError

logger = logging.getLogger(__name__)

_DESCRIBE_TIMEOUT_S = 2.0
_FIGURES_TIMEOUT_S = 2.0
_FAILURES = (BackPressureError, DeploymentUnavailableError, RayTaskError, RayActorError)


class ReplicaBackend:
    """Sends calls to the replicas of one deployment.

    Args:
        handle: Of the model deployment.
        app_name: Serve application that it belongs to.
        may_be_idle: Whether no replica at all is a normal state (scaled to zero).
        scarce: Adapters that do not all fit in a replica's memory: their calls prefer replicas that have them.
        info_s: Seconds after which the replicas are asked again what they serve; where not given, once is enough.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        *,
        app_name: str,
        may_be_idle: bool,
        scarce: Collection[str] = (),
        info_s: float = math.inf,
    ) -> None:
        self._handle, self._app_name, self._may_be_idle = handle, app_name, may_be_idle
        self._streams = handle.options(stream=True)
        self._scarce, self._info_s = frozenset(scarce), info_s
        self._info: ModelInfo | None = None
        self._asked_at = -math.inf

    async def complete(self, call: Call) -> Outcome:
        """See `Backend`.

        Raises:
            ReplicaLostError: Its replica is gone.
        """
        response: Any = self._preferring(self._handle, call).complete.remote(call)
        try:
            outcome: Outcome = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except _FAILURES as error:
            return _problem(error)
        return outcome

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """As `complete`."""
        response: Any = self._preferring(self._streams, call).stream.remote(call)
        is_done = False
        try:
            async for event in response:
                yield event
            is_done = True
        except _FAILURES as error:
            is_done = True
            yield _problem(error)
        finally:
            if not is_done:
                response.cancel()

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """As `complete`."""
        try:
            found: Tokens | Problem = await self._handle.tokens.remote(call)
        except _FAILURES as error:
            return _problem(error)
        return found

    async def models(self) -> Sequence[ModelInfo] | Problem:
        """As `complete`."""
        if self._info is None:
            try:
                self._info = await self._handle.describe.remote()
            except _FAILURES as error:
                return _problem(error)
        return [self._info]

    async def health(self) -> Health:
        """See `Backend`. The controller is asked, for replicas may be busy for long."""
        try:
            num_replicas = await asyncio.to_thread(self._count_replicas)
        except (RayError, RayServeException):
            logger.exception("the Serve controller does not answer")
            return Health("not_ready", 0, self._info)
        if num_replicas:
            return Health("ok", num_replicas, await self._describe())
        return Health("idle" if self._may_be_idle else "not_ready", 0, self._info)

    async def figures(self) -> Sequence[Figures]:
        """See `Backend`. Serve's own way to ask all replicas; none that is known, or one that hangs, means none."""
        try:
            answers = await self._handle.broadcast("figures").results_async(
                timeout_s=_FIGURES_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, *_FAILURES) as error:
            logger.info("%s tells no figures: %s", self._handle.deployment_name, type(error).__name__)
            return []
        return [each for each in answers if isinstance(each, Figures)]

    def _preferring(self, handle: DeploymentHandle[Any], call: Call) -> Any:
        return handle.options(multiplexed_model_id=call.model) if call.model in self._scarce else handle

    def _count_replicas(self) -> int:
        app = serve.status().applications[self._app_name]
        deployment = app.deployments.get(self._handle.deployment_name)
        states = deployment.replica_states if deployment else {}
        return sum(number for state, number in states.items() if state == "RUNNING")

    async def _describe(self) -> ModelInfo | None:
        now = time.monotonic()
        if self._info is None or now > self._asked_at + self._info_s:
            self._asked_at = now
            response: Any = self._handle.describe.remote()
            try:
                async with asyncio.timeout(_DESCRIBE_TIMEOUT_S):
                    self._info = await response
            except TimeoutError:
                response.cancel()
            except _FAILURES as error:
                logger.info("%s does not say what it serves: %s", self._handle.deployment_name, type(error).__name__)
        return self._info


def _problem(error: Exception) -> Problem:
    """What a caller is told of a failure of Ray's.

    Raises:
        ReplicaLostError: That is what it is.
    """
    if isinstance(error, BackPressureError):
        return Problem(429, "overloaded", "too many calls are waiting; try again later")
    if isinstance(error, DeploymentUnavailableError):
        return Problem(503, "not_ready", "the model could not be opened; the server's log has the details")
    if isinstance(error, RayActorError):
        raise ReplicaLostError from error
    logger.error("a replica failed", exc_info=error)
    cause = error.cause if isinstance(error, RayTaskError) else error
    return Problem(500, "internal", f"the replica failed with {type(cause).__name__}")
