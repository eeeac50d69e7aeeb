"""Reading and writing single rows of the registry's tables, inside a transaction that the caller holds."""

from __future__ import annotations

import datetime
import getpass
import os
import socket
import sqlite3

from rayloom.config import GateConfig
from rayloom.registry.finding import chosen, no_model
from rayloom.registry.records import Change, Verdict, Version
from rayloom.registry.references import Reference
from rayloom.registry.refusals import no_verdict


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def who() -> str:
    """User and machine, as far as the system tells."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # containers run under numbers that have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def note(connection: sqlite3.Connection, model: str, version: int | None, action: str, detail: str = "") -> None:
    """Write a change into the model's history."""
    change = Change(at=now(), who=who(), version=version, action=action, detail=detail)
    connection.execute("INSERT INTO changes (model, record) VALUES (?, ?)", (model, change.model_dump_json()))


def model_names(connection: sqlite3.Connection) -> list[str]:
    """All models, by name."""
    return [row["name"] for row in connection.execute("SELECT name FROM models ORDER BY name")]


def check_model(connection: sqlite3.Connection, model: str) -> None:
    """Raise `RegistryError` for a model that is not there."""
    if connection.execute("SELECT 1 FROM models WHERE name = ?", (model,)).fetchone():
        return
    raise no_model(model, model_names(connection))


def all_versions(connection: sqlite3.Connection, model: str) -> list[Version]:
    """The versions of a model, oldest first."""
    found = connection.execute("SELECT stage, record FROM versions WHERE model = ? ORDER BY version", (model,))
    return [_version(row) for row in found]


def version_by_digest(connection: sqlite3.Connection, digest: str, model: str | None = None) -> Version | None:
    """The first version that has this artifact, of any model or of one."""
    found = connection.execute(
        "SELECT stage, record FROM versions WHERE digest = ?1 AND (?2 IS NULL OR model = ?2) ORDER BY rowid",
        (digest, model),
    ).fetchone()
    return _version(found) if found else None


def find(connection: sqlite3.Connection, wanted: Reference) -> Version:
    """The version that a reference means: by number, or the newest in a stage, production if none is named.

    Raises:
        RegistryError: No such model or version, or none in that stage.
    """
    check_model(connection, wanted.model)
    return chosen(all_versions(connection, wanted.model), wanted)


def production_of(connection: sqlite3.Connection, model: str) -> int | None:
    """The version in production, if any."""
    found = connection.execute(
        "SELECT version FROM versions WHERE model = ? AND stage = 'production'", (model,)
    ).fetchone()
    return int(found["version"]) if found else None


def set_stage(connection: sqlite3.Connection, model: str, version: int, stage: str) -> None:
    """Move a version."""
    connection.execute("UPDATE versions SET stage = ? WHERE model = ? AND version = ?", (stage, model, version))


def write_record(connection: sqlite3.Connection, version: Version) -> None:
    """Replace what is known of a version; its stage is a column of its own."""
    connection.execute(
        "UPDATE versions SET record = ? WHERE model = ? AND version = ?",
        (version.model_dump_json(exclude={"stage"}), version.model, version.version),
    )


def gate_of(connection: sqlite3.Connection, model: str) -> GateConfig:
    """The model's gate; the default one where it was given none."""
    found = connection.execute("SELECT gate FROM models WHERE name = ?", (model,)).fetchone()
    return GateConfig.model_validate_json(found["gate"]) if found and found["gate"] else GateConfig()


def verdict_of(connection: sqlite3.Connection, number: int) -> Verdict:
    """A recorded verdict.

    Raises:
        RegistryError: There is none of this number.
    """
    found = connection.execute("SELECT id, record FROM verdicts WHERE id = ?", (number,)).fetchone()
    if found is None:
        raise no_verdict(number)
    return _verdict(found)


def verdicts_on(connection: sqlite3.Connection, model: str, version: int) -> list[Verdict]:
    """All verdicts on a version, oldest first."""
    found = connection.execute(
        "SELECT id, record FROM verdicts WHERE model = ? AND version = ? ORDER BY id", (model, version)
    )
    return [_verdict(row) for row in found]


def _version(row: sqlite3.Row) -> Version:
    return Version.model_validate_json(row["record"]).model_copy(update={"stage": row["stage"]})


def _verdict(row: sqlite3.Row) -> Verdict:
    return Verdict.model_validate_json(row["record"]).model_copy(update={"id": row["id"]})
