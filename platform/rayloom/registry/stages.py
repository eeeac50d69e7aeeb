"""How versions move from stage to stage. Every function is one transaction's content."""

from __future__ import annotations

import sqlite3

from rayloom.errors import ArtifactError, RegistryError
from rayloom.registry import rows
from rayloom.registry.lineage import manifest_digest
from rayloom.registry.records import Stage, Version
from rayloom.registry.references import Reference
from rayloom.registry.refusals import check_move, check_promotion, moved_text, nothing_before, other_artifact, overtaken


def promote(connection: sqlite3.Connection, number: int) -> Version:
    """Put a judged version into production, and archive the one that was there.

    Whatever the verdict depended on must still be so: the artifact, the version in production, the gate, the reports.

    Args:
        connection: Holds the write lock.
        number: The verdict.

    Raises:
        RegistryError: The gate said no, or something has changed since it was asked.
    """
    verdict = rows.verdict_of(connection, number)
    version = rows.find(connection, Reference(verdict.model, verdict.version))
    old, gate = rows.production_of(connection, verdict.model), rows.gate_of(connection, verdict.model)
    production = rows.find(connection, Reference(verdict.model, old)) if old is not None else None
    check_promotion(verdict, version, production=production, gate=gate)
    check_artifact(version)
    if old is not None:
        rows.set_stage(connection, verdict.model, old, "archived")
        _close_promotion(connection, verdict.model, "replaced")
    _put_into_production(connection, version, number)
    rows.note(connection, version.model, version.version, "promoted", f"in place of {old}" if old else "the first")
    return version.model_copy(update={"stage": "production"})


def rollback(connection: sqlite3.Connection, model: str, expected: int) -> Version:
    """Bring the previous production version back, and archive the one that is there.

    Its gate was passed when it was promoted; only its artifact is checked again, since a rollback has to be quick.

    Args:
        connection: Holds the write lock.
        model: Whose.
        expected: The version that the caller saw in production.

    Raises:
        RegistryError: Another version is in production by now, there is nothing to go back to, or its artifact is gone.
    """
    rows.check_model(connection, model)
    current = rows.production_of(connection, model)
    if current != expected:
        raise overtaken(model, expected, current)
    earlier = connection.execute(
        "SELECT id, version, verdict FROM promotions WHERE model = ? AND state = 'replaced' ORDER BY id DESC LIMIT 1",
        (model,),
    ).fetchone()
    if earlier is None:
        raise nothing_before(model)
    version = rows.find(connection, Reference(model, int(earlier["version"])))
    check_artifact(version)
    rows.set_stage(connection, model, expected, "archived")
    _close_promotion(connection, model, "taken back")
    connection.execute("UPDATE promotions SET state = 'current' WHERE id = ?", (earlier["id"],))
    rows.set_stage(connection, model, version.version, "production")
    rows.note(connection, model, version.version, "rolled back to", f"in place of {expected}")
    return version.model_copy(update={"stage": "production"})


def move(connection: sqlite3.Connection, wanted: Reference, stage: Stage) -> Version:
    """Make a version a candidate, or archive it.

    Raises:
        RegistryError: It is in production, which only another promotion or a rollback ends.
    """
    version = rows.find(connection, wanted)
    check_move(version)
    rows.set_stage(connection, version.model, version.version, stage)
    rows.note(connection, version.model, version.version, moved_text(stage))
    return rows.find(connection, Reference(version.model, version.version))


def check_artifact(version: Version) -> None:
    """Refuse a version whose artifact is gone, or another than the registered one.

    Raises:
        RegistryError: It is.
    """
    try:
        found = manifest_digest(version.location)
    except ArtifactError as error:
        raise RegistryError(f"{version.name}: its artifact is gone: {error}") from None
    if found != version.digest:
        raise other_artifact(version)


def _put_into_production(connection: sqlite3.Connection, version: Version, verdict: int) -> None:
    connection.execute(
        "INSERT INTO promotions (model, version, verdict, state) VALUES (?, ?, ?, 'current')",
        (version.model, version.version, verdict),
    )
    rows.set_stage(connection, version.model, version.version, "production")


def _close_promotion(connection: sqlite3.Connection, model: str, state: str) -> None:
    connection.execute("UPDATE promotions SET state = ? WHERE model = ? AND state = 'current'", (state, model))
