"""Changes of an application, by what Serve says of them. The messages are those of Ray 2.60."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from rayloom.serving.following import OvertakenError, ReplicasLostError
from rayloom.serving.rollouts import wait_answered, wait_out

LOST = (
    "A replica's health check failed. This deployment will be UNHEALTHY until the replica recovers or a new deploy "
    "happens."
)
RETRYING = "A replica failed to start with exception. Retrying 4 more time(s). Error:\nrayloom.errors.ArtifactError: x"
STOPPED = (
    "The deployment failed to start 9 times in a row during a rolling update. This may be due to a problem with its "
    "constructor, initial health check, or health checks failing. The update is stopped and replicas of the previous "
    "version keep running until a new deploy. See controller logs for details. Error:\n"
)
NEVER_HEALTHY = "A replica of the new version failed its health check."
DIED = "ActorDiedError('The actor died unexpectedly before finishing this task.')"
BROKEN = "Traceback …\nrayloom.errors.ArtifactError: a golden prompt does not replay"


def overview(status: str, *deployments: tuple[str, str, str]) -> ApplicationStatusOverview:
    """Of an application: its status, and status, trigger and message of its deployments."""
    of: Any = DeploymentStatusOverview
    told = {str(place): of(kind, trigger, {}, message) for place, (kind, trigger, message) in enumerate(deployments)}
    return ApplicationStatusOverview(ApplicationStatus(status), "failed", 0.0, told)


def failing(message: str, trigger: str = "HEALTH_CHECK_FAILED") -> ApplicationStatusOverview:
    return overview("DEPLOY_FAILED", ("HEALTHY", "UNSPECIFIED", ""), ("DEPLOY_FAILED", trigger, message))


def waited(*states: ApplicationStatusOverview | None) -> int:
    """Looks that were taken until it was over."""
    looks = iter(states)
    wait_out("app", poll_s=0.0, look=lambda name: next(looks))
    return len(states) - len(list(looks))


DONE = overview("RUNNING", ("HEALTHY", "UNSPECIFIED", ""))


def test_a_change_goes_on_though_replicas_are_lost() -> None:
    changing = overview(
        "UNHEALTHY", ("UNHEALTHY", "HEALTH_CHECK_FAILED", LOST), ("UPDATING", "CONFIG_UPDATE_STARTED", "")
    )
    states = (overview("DEPLOYING"), failing(LOST), failing(RETRYING), changing, failing(LOST), DONE)
    assert waited(*states, DONE) == 6


def test_replicas_of_what_does_not_change_are_not_waited_for() -> None:
    assert (
        waited(overview("DEPLOYING"), overview("UNHEALTHY", *[("UNHEALTHY", "HEALTH_CHECK_FAILED", LOST)] * 2), DONE)
        == 2
    )


@pytest.mark.parametrize("trigger", ["HEALTH_CHECK_FAILED", "REPLICA_STARTUP_FAILED"])
@pytest.mark.parametrize("why", [NEVER_HEALTHY, DIED])
def test_a_change_whose_replicas_were_lost_ends_when_serve_stops_it(trigger: str, why: str) -> None:
    with pytest.raises(ReplicasLostError, match="9 times"):
        waited(failing(LOST), failing(STOPPED + why, trigger), DONE)


@pytest.mark.parametrize("trigger", ["HEALTH_CHECK_FAILED", "REPLICA_STARTUP_FAILED"])
def test_a_version_that_does_not_open_is_told_from_lost_replicas(trigger: str) -> None:
    with pytest.raises(RuntimeError, match="golden prompt") as caught:
        waited(failing(LOST), failing(STOPPED + BROKEN, trigger), DONE)
    assert not isinstance(caught.value, ReplicasLostError)


def test_one_that_is_broken_ends_it_whatever_becomes_of_the_others() -> None:
    broken = ("DEPLOY_FAILED", "REPLICA_STARTUP_FAILED", STOPPED + BROKEN)
    lost = ("DEPLOY_FAILED", "HEALTH_CHECK_FAILED", LOST)
    with pytest.raises(RuntimeError, match="golden prompt"):
        waited(overview("DEPLOY_FAILED", lost, broken), DONE)


def test_an_application_that_could_not_be_built_or_is_gone() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        waited(overview("DEPLOY_FAILED"), DONE)
    with pytest.raises(RuntimeError, match="deleted"):
        waited(overview("DEPLOYING"), None)


def test_a_change_that_has_no_end_is_left_once_nobody_wants_it() -> None:
    answers = [True, True, False]
    with pytest.raises(OvertakenError, match="app"):
        wait_out(
            "app", is_wanted=lambda: answers.pop(0), poll_s=0.0, ask_s=0.0, look=lambda name: overview("DEPLOYING")
        )
    assert answers == []


class Opening:
    """A call that is answered after so many looks, or never."""

    def __init__(self, looks: int | None = None, error: Exception | None = None) -> None:
        self.looks, self.error, self.num_looks, self.is_cancelled = looks, error, 0, False

    def result(self, *, timeout_s: float | None = None) -> str:
        assert timeout_s == 0.5
        self.num_looks += 1
        if self.looks is None or self.num_looks < self.looks:
            raise TimeoutError
        if self.error is not None:
            raise self.error
        return "described"

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_version_that_was_not_open_is_waited_for() -> None:
    call = Opening(looks=4)
    wait_answered(call, is_wanted=lambda: True, ask_s=0.5)
    assert (call.num_looks, call.is_cancelled) == (4, False)


def test_a_version_that_never_opens_is_waited_for_as_long_as_it_is_wanted() -> None:
    call, wishes = Opening(), iter([True, True, False])
    with pytest.raises(OvertakenError):
        wait_answered(call, is_wanted=lambda: next(wishes), ask_s=0.5)
    assert (call.num_looks, call.is_cancelled) == (3, True)


def test_why_a_version_cannot_be_opened_is_told() -> None:
    with pytest.raises(RuntimeError, match="no golden prompt"):
        wait_answered(Opening(1, RuntimeError("no golden prompt")), is_wanted=lambda: True, ask_s=0.5)
