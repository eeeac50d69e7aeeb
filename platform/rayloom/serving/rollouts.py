"""Whether a change of a served application has come to its end, and which one.

Serve calls a change failed as soon as one new replica is lost, and goes on with it all the same: it stops only when new
replicas have failed three times each. Serve's own wait ends at the first; this one at the second. Nor does it wait for
replicas of deployments that do not change, which Serve's does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from ray import serve

from rayloom.serving.following import OvertakenError, ReplicasLostError

_LOST_TRIGGER = "HEALTH_CHECK_FAILED"
_STOPPED = ("The deployment failed to start", "The rolling update of this deployment failed")
"""How Serve begins to speak of a deployment whose change it has stopped, whatever the trigger."""
_OF_LOSS = re.compile(r"failed its health check\.$|\b(Actor\w+|WorkerCrashed\w*|NodeDied\w*|OwnerDied\w*)Error\b")
_POLL_S = 0.2
_ASK_S = 5.0
"""Between two questions whether a change is wanted: whoever answers may have to ask a registry far away."""


class Asked(Protocol):
    """A call that was made, as `ray.serve.handle.DeploymentResponse`."""

    def result(self, *, timeout_s: float | None = None) -> Any:
        """Its outcome; a `TimeoutError` once the time is over, and it can be asked for again."""
        ...

    def cancel(self) -> None:
        """Nobody waits any longer."""
        ...


State = Literal["goes on", "done", "failed"]


def wait_out(
    name: str,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    poll_s: float = _POLL_S,
    ask_s: float = _ASK_S,
    look: Callable[[str], Any] | None = None,
) -> None:
    """Wait until a change is through, or Serve has given it up, or nobody wants it any more.

    Serve waits without end for room on the cluster, or for a replica that takes for ever to open.

    Args:
        name: Of the application.
        is_wanted: Whether the change still should be made.
        poll_s: Seconds between two looks.
        ask_s: Seconds between two questions whether it is wanted.
        look: The application's status by its name, as `serve.status` tells it; injected by tests.

    Raises:
        OvertakenError: It is not wanted.
        ReplicasLostError: Serve gave it up because new replicas were lost.
        RuntimeError: It failed in another way.
    """
    look = look or (lambda name: serve.status().applications.get(name))
    asked_at = time.monotonic()
    while True:
        status = look(name)
        state = "failed" if status is None else state_of(status)
        if state == "done":
            return
        if state == "failed":
            raise _error(name, status)
        if time.monotonic() >= asked_at + ask_s:
            asked_at = time.monotonic()
            if not is_wanted():
                raise OvertakenError(f"{name}: the change is not wanted any more")
        time.sleep(poll_s)


def wait_answered(asked: Asked, *, is_wanted: Callable[[], bool], ask_s: float = _ASK_S) -> None:
    """Wait for a call of a deployment that may have had no replica: only now its version is opened.

    Args:
        asked: The call, a handle's response.
        is_wanted: Whether the change still should be made.
        ask_s: Seconds between two questions whether it is wanted.

    Raises:
        OvertakenError: It is not wanted; the call is cancelled.
        RuntimeError: The version could not be opened, as Serve tells it.
    """
    while True:
        try:
            asked.result(timeout_s=ask_s)
        except TimeoutError:
            if is_wanted():
                continue
            asked.cancel()
            raise OvertakenError("the change is not wanted any more") from None
        return


def state_of(status: Any) -> State:
    """Where a change is, by the status of its application (`ray.serve.schema.ApplicationStatusOverview`)."""
    failed = _failed(status)
    if status.status == "DEPLOY_FAILED":
        return "goes on" if failed and all(map(_only_lost_some, failed)) else "failed"
    is_changing = status.status == "DEPLOYING" or any(each.status == "UPDATING" for each in status.deployments.values())
    return "goes on" if is_changing else "done"


def _failed(status: Any) -> list[Any]:
    return [each for each in status.deployments.values() if each.status == "DEPLOY_FAILED"]


def _only_lost_some(deployment: Any) -> bool:
    """Whether Serve goes on with the change of a deployment that it calls failed."""
    return deployment.status_trigger == _LOST_TRIGGER and not deployment.message.startswith(_STOPPED)


def _error(name: str, status: Any) -> RuntimeError:
    if status is None:
        return RuntimeError(f"{name} is gone: it was deleted while it changed")
    failed = _failed(status)
    messages = [each.message.strip() for each in failed] or [status.message]
    are_lost = bool(failed) and all(_OF_LOSS.search(message) for message in messages)
    return (ReplicasLostError if are_lost else RuntimeError)("; ".join(messages))
