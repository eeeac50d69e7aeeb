"""The registry's SQLite file: its tables, and transactions on it.

The rules that must hold whatever a program does wrong stand here as well, as an index and triggers: at most one version
of a model is in production, and only with a verdict that passed on that very artifact.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rayloom.errors import RegistryError

_FORMAT = 1
_WAIT_S = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, gate TEXT);
CREATE TABLE IF NOT EXISTS versions (
    model TEXT NOT NULL REFERENCES models (name),
    version INTEGER NOT NULL,
    stage TEXT NOT NULL DEFAULT 'none' CHECK (stage IN ('none', 'candidate', 'production', 'archived')),
    digest TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (model, version),
    UNIQUE (model, digest)
);
CREATE UNIQUE INDEX IF NOT EXISTS one_production ON versions (model) WHERE stage = 'production';
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    digest TEXT NOT NULL,
    passed INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS promotions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    verdict INTEGER NOT NULL REFERENCES verdicts (id),
    state TEXT NOT NULL CHECK (state IN ('current', 'replaced', 'taken back'))
);
CREATE UNIQUE INDEX IF NOT EXISTS one_current ON promotions (model) WHERE state = 'current';
CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, record TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS gate_before_production BEFORE UPDATE OF stage ON versions
WHEN NEW.stage = 'production' AND NOT EXISTS (
    SELECT 1 FROM promotions JOIN verdicts ON verdicts.id = promotions.verdict
    WHERE promotions.model = NEW.model AND promotions.version = NEW.version AND promotions.state = 'current'
      AND verdicts.model = NEW.model AND verdicts.version = NEW.version
      AND verdicts.passed = 1 AND verdicts.digest = NEW.digest
)
BEGIN SELECT RAISE(ABORT, 'no passing verdict of the gate'); END;
CREATE TRIGGER IF NOT EXISTS no_production_at_birth BEFORE INSERT ON versions WHEN NEW.stage = 'production'
BEGIN SELECT RAISE(ABORT, 'a version is registered first and promoted then'); END;
CREATE TRIGGER IF NOT EXISTS same_artifact BEFORE UPDATE OF digest ON versions
BEGIN SELECT RAISE(ABORT, 'the artifact of a version never changes'); END;
CREATE TRIGGER IF NOT EXISTS same_verdict BEFORE UPDATE ON verdicts
BEGIN SELECT RAISE(ABORT, 'a verdict never changes'); END;
"""


def registry_root(given: Path | str | None = None) -> Path:
    """Where an embedded registry lies: the given folder, ``$RAYLOOM_REGISTRY`` or ``~/.rayloom/registry``.

    Raises:
        RegistryError: The place is no folder but one in MLflow.
    """
    chosen = given or os.environ.get("RAYLOOM_REGISTRY") or Path.home() / ".rayloom" / "registry"
    if str(chosen).startswith("mlflow"):
        raise RegistryError(
            f"'{chosen}' is no folder: take mlflow+http(s)://… or mlflow+sqlite:///…, with open_registry"
        )
    return Path(chosen).expanduser().absolute()


class Database:
    """Transactions on the registry's file, each on a connection of its own: processes and threads may share it.

    Args:
        path: The SQLite file; made by the first change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One change: all of it or nothing, and no other process changes anything meanwhile.

        Raises:
            RegistryError: The file cannot be written, or others hold it for too long.
        """
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect(str(self._path))) as connection:
                # IMMEDIATE takes the lock now: what is read inside is still true when it is written upon.
                connection.execute("BEGIN IMMEDIATE")
                try:
                    self._make_tables(connection)
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One look at the registry, of a single moment. A registry that does not exist yet is an empty one.

        Raises:
            RegistryError: The file cannot be read.
        """
        with self._told(), contextlib.closing(self._for_reading()) as connection:
            connection.execute("BEGIN")
            yield connection

    def _for_reading(self) -> sqlite3.Connection:
        if self._path.exists():
            # Not read-only: after a crash the first reader has to finish what the journal says.
            connection = self._connect(f"{self._path.as_uri()}?mode=rw")
            if _format(connection):
                _check_format(connection, self._path)
                return connection
            connection.close()
        connection = self._connect(":memory:")
        self._make_tables(connection)
        return connection

    def _connect(self, place: str) -> sqlite3.Connection:
        connection = sqlite3.connect(place, timeout=_WAIT_S, isolation_level=None, uri=place.startswith("file:"))
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        if _format(connection) == 0:
            for statement in _statements(_TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        _check_format(connection, self._path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RegistryError(
                f"the registry {self._path} cannot be used: {error}. Mend its rights or its disk, or name another "
                "folder with $RAYLOOM_REGISTRY"
            ) from error


def _format(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return int(number)


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    number = _format(connection)
    if number > _FORMAT:
        raise RegistryError(f"{path} has format {number}; this Rayloom reads up to {_FORMAT}: upgrade rayloom")


def _statements(script: str) -> Iterator[str]:
    """One statement after the other: sqlite3's own executescript would end the transaction."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
