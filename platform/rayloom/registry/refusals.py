"""Why a version does not move to another stage; the same for every kind of registry."""

from __future__ import annotations

from rayloom.config import GateConfig, config_hash
from rayloom.errors import RegistryError
from rayloom.registry.records import Report, Stage, Verdict, Version


def check_promotion(verdict: Verdict, version: Version, *, production: Version | None, gate: GateConfig) -> None:
    """Refuse a promotion that the gate has not allowed, or that rests on what has changed since.

    Args:
        verdict: What the gate said.
        version: The version that it is about, as it is now.
        production: The version that is in production now.
        gate: The model's gate now.

    Raises:
        RegistryError: The gate said no, or something has changed since it was asked.
    """
    if not verdict.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in verdict.checks if not check.passed)
        raise RegistryError(f"{version.name} does not pass the gate: {failed}")
    if version.stage == "production":
        raise RegistryError(f"{version.name} is in production already")
    current = production.version if production else None
    if current != verdict.production:
        raise overtaken(verdict.model, verdict.production, current)
    if config_hash(gate) != verdict.gate_hash:
        raise RegistryError(f"the gate was changed after {version.name} was judged: promote it again")
    if _hash(version.report) != verdict.report_hash:
        raise RegistryError(f"{version.name} got another report after it was judged: promote it again")
    compared = verdict.production_report_hash
    if production and compared is not None and _hash(production.report) != compared:
        raise RegistryError(
            f"{production.name} got another report after {version.name} was compared with it: promote it again"
        )
    if version.digest != verdict.digest:
        raise RegistryError(f"{version.name} was judged with another artifact: promote it again")


def check_move(version: Version) -> None:
    """Refuse to take the version in production out of it.

    Raises:
        RegistryError: It is in production, which only another promotion or a rollback ends.
    """
    if version.stage == "production":
        raise RegistryError(
            f"{version.name} is in production: promote another version, or go back with "
            f"rayloom models rollback {version.model}; then this one is archived"
        )


def overtaken(model: str, expected: int | None, current: int | None) -> RegistryError:
    """Of a change that was meant for another state."""
    return RegistryError(
        f"'{model}' has {_version_text(current)} in production by now, not {_version_text(expected)}: somebody else "
        "was faster. Look at it with rayloom models show, and try again"
    )


def other_artifact(version: Version) -> RegistryError:
    """Of a version whose artifact is not the registered one any more."""
    return RegistryError(
        f"{version.name}: {version.location} holds another artifact than the one that was registered: put that one "
        "back, or register this one as a version of its own"
    )


def no_verdict(number: int) -> RegistryError:
    """Of a verdict that nobody has recorded."""
    return RegistryError(f"there is no verdict {number}: have the version judged first")


def nothing_before(model: str) -> RegistryError:
    """Of a rollback from the first version that was in production."""
    return RegistryError(f"'{model}' has no earlier production version to go back to")


def moved_text(stage: Stage) -> str:
    """How the history calls a move by hand."""
    return "archived" if stage == "archived" else f"made a {stage}"


def _hash(report: Report | None) -> str | None:
    return report.sha256 if report is not None else None


def _version_text(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
