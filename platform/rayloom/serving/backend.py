"""The model replicas as a `Backend`: a Serve handle, with Ray's errors turned into problems."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from rayloom.serving.calls import Call, Health, ModelInfo, Outcome, Problem

logger = logging.getLogger(__name__)

_DESCRIBE_TIMEOUT_S = 2.0


class ReplicaBackend:
    """Sends calls to the replicas of one deployment.

    Args:
        handle: Of the model deployment.
        app_name: Serve application that it belongs to.
        may_be_idle: Whether no replica at all is a normal state (scaled to zero).
    """

    def __init__(self, handle: DeploymentHandle[Any], *, app_name: str, may_be_idle: bool) -> None:
        self._handle, self._app_name, self._may_be_idle = handle, app_name, may_be_idle
        self._info: ModelInfo | None = None

    async def complete(self, call: Call) -> Outcome:
        """See `Backend`."""
        response: Any = self._handle.complete.remote(call)
        try:
            outcome: Outcome = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            message = "too many calls are waiting; try again later"
            return Problem(503, "overloaded", message, retry_after_s=math.ceil(error.retry_after_s or 1))
        except DeploymentUnavailableError:
            return Problem(503, "not_ready", "the model could not be opened; the server's log has the details")
        except RayTaskError as error:
            logger.exception("a replica failed")
            return Problem(500, "internal", f"the replica failed with {type(error.cause).__name__}")
        except RayActorError:
            return Problem(503, "not_ready", "the replica was lost; try again", retry_after_s=1)
        return outcome

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

    def _count_replicas(self) -> int:
        app = serve.status().applications[self._app_name]
        deployment = app.deployments.get(self._handle.deployment_name)
        states = deployment.replica_states if deployment else {}
        return sum(number for state, number in states.items() if state == "RUNNING")

    async def _describe(self) -> ModelInfo | None:
        if self._info is None:
            response: Any = self._handle.describe.remote()
            try:
                async with asyncio.timeout(_DESCRIBE_TIMEOUT_S):
                    self._info = await response
            except TimeoutError:
                response.cancel()
        return self._info
