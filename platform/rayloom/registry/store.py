"""`Registry`: the embedded registry, a SQLite file with artifacts and reports below one folder."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path

from rayloom.artifacts import Artifact, open_artifact, storage
from rayloom.artifacts.manifest import MANIFEST_FILE
from rayloom.config import GateConfig
from rayloom.errors import ArtifactError, RegistryError
from rayloom.registry import rows, stages
from rayloom.registry.database import Database, registry_root
from rayloom.registry.finding import summary
from rayloom.registry.lineage import lineage_of, manifest_digest, opened, trained_from
from rayloom.registry.records import Change, ModelSummary, Report, Verdict, Version
from rayloom.registry.references import Reference, check_model_name, parse_reference
from rayloom.registry.refusals import other_artifact


class Registry:
    """Versions of named models on this machine, or on a disk that machines share.

    Any number of threads and processes may use it at once. Each call is one transaction.

    Args:
        root: Its folder; ``$RAYLOOM_REGISTRY`` or ``~/.rayloom/registry`` where not given.

    Attributes:
        place: What to name to open it again.

    Raises:
        RegistryError: The place is one in MLflow: `open_registry` opens those.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = registry_root(root)
        self.place = str(self.root)
        self._database = Database(self.root / "registry.db")

    def register(
        self, model: str, artifact: str | Path, *, copy: bool = True, parent: str | None = None, note: str = ""
    ) -> Version:
        """Make an artifact the next version of a model; the version it is already, if it is one.

        Args:
            model: Name of the model; a new one comes into being.
            artifact: Folder or URI.
            copy: Keep a copy, so that the version outlives the run's folder; else the artifact stays where it is.
            parent: The version that training started from; found out where not given, if the config names its artifact.
            note: What people should know.

        Raises:
            ArtifactError: No artifact, or a damaged one.
            RegistryError: A name that cannot be one, an unknown parent, or a note or parent for what is registered.
        """
        check_model_name(model)
        local = storage.local_path(artifact)
        source = str(local.expanduser().absolute()) if local is not None else str(artifact)
        found, digest = opened(source)
        location = self._keep(found, digest) if copy else source
        with self._database.writing() as connection:
            known = rows.version_by_digest(connection, digest, model)
            if known is not None:
                check_nothing_new(known, parent, note)
                return known
            return _insert(
                connection,
                Version(
                    model=model,
                    version=1,
                    digest=digest,
                    location=location,
                    registered=rows.now(),
                    lineage=lineage_of(found, source, _parent(connection, found, parent)),
                    metrics=found.manifest.metrics,
                    note=note,
                ),
            )

    def attach_report(self, reference: str, content: bytes, metrics: Mapping[str, float]) -> Version:
        """Add an evaluation report to a version, in place of an earlier one.

        Args:
            reference: The version.
            content: Of ``report.json``. The caller has made sure that it measures this version's artifact.
            metrics: Its figures, such as ``test.rougeL``.
        """
        wanted, digest = parse_reference(reference), hashlib.sha256(content).hexdigest()
        path = self.root / "reports" / f"{digest}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        storage.write_durably(part, content)
        part.replace(path)
        with self._database.writing() as connection:
            version = rows.find(connection, wanted)
            report = Report(path=str(path), sha256=digest, metrics=dict(metrics))
            changed = version.model_copy(update={"report": report})
            rows.write_record(connection, changed)
            rows.note(connection, version.model, version.version, "measured", f"report {digest[:12]}")
            return changed

    def read_report(self, version: Version) -> bytes:
        """The report of a version that has one, if it is still what was attached.

        Raises:
            RegistryError: It is gone, or was changed.
        """
        assert version.report is not None
        path = Path(version.report.path)
        return self._checked_report(version, path.read_bytes() if path.is_file() else b"")

    def models(self) -> list[ModelSummary]:
        """All models at a glance, by name."""
        with self._database.reading() as connection:
            return [summary(name, rows.all_versions(connection, name)) for name in rows.model_names(connection)]

    def versions(self, model: str) -> list[Version]:
        """All versions of a model, oldest first.

        Raises:
            RegistryError: No such model.
        """
        with self._database.reading() as connection:
            rows.check_model(connection, model)
            return rows.all_versions(connection, model)

    def get(self, reference: str) -> Version:
        """The version that ``NAME@VERSION``, ``NAME@STAGE`` (the newest there) or ``NAME`` (production) means.

        Raises:
            RegistryError: There is none.
        """
        with self._database.reading() as connection:
            return rows.find(connection, parse_reference(reference))

    def production(self, model: str) -> Version | None:
        """The version in production, if there is one."""
        with self._database.reading() as connection:
            rows.check_model(connection, model)
            number = rows.production_of(connection, model)
            return rows.find(connection, Reference(model, number)) if number is not None else None

    def resolve(self, reference: str) -> str:
        """Folder or URI of a version's artifact.

        Its manifest is compared with the registered digest; `open_artifact` compares all other files with the manifest.

        Raises:
            RegistryError: No such version.
            ArtifactError: The artifact is gone.
        """
        return located(self.get(reference))

    def gate(self, model: str) -> GateConfig:
        """The model's gate; the default one where it was given none."""
        with self._database.reading() as connection:
            rows.check_model(connection, model)
            return rows.gate_of(connection, model)

    def set_gate(self, model: str, gate: GateConfig) -> None:
        """Give a model another gate. Verdicts of the old one promote nothing any more."""
        check_model_name(model)
        text = gate.model_dump_json(exclude_unset=True)
        with self._database.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", (model,))
            connection.execute("UPDATE models SET gate = ? WHERE name = ?", (text, model))
            rows.note(connection, model, None, "gate changed", text)

    def record(self, verdict: Verdict) -> Verdict:
        """Write down what the gate said; the verdict comes back with its number."""
        with self._database.writing() as connection:
            rows.find(connection, Reference(verdict.model, verdict.version))
            cursor = connection.execute(
                "INSERT INTO verdicts (model, version, digest, passed, record) VALUES (?, ?, ?, ?, ?)",
                (verdict.model, verdict.version, verdict.digest, verdict.passed, verdict.model_dump_json()),
            )
            rows.note(connection, verdict.model, verdict.version, "passed" if verdict.passed else "failed", "the gate")
            assert cursor.lastrowid is not None
            return verdict.model_copy(update={"id": cursor.lastrowid})

    def verdicts(self, reference: str) -> list[Verdict]:
        """All verdicts on a version, oldest first."""
        with self._database.reading() as connection:
            version = rows.find(connection, parse_reference(reference))
            return rows.verdicts_on(connection, version.model, version.version)

    def promote(self, verdict: int) -> Version:
        """Put a judged version into production. See `stages.promote`."""
        with self._database.writing() as connection:
            return stages.promote(connection, verdict)

    def nominate(self, reference: str) -> Version:
        """Make a version a candidate. See `stages.move`."""
        with self._database.writing() as connection:
            return stages.move(connection, parse_reference(reference), "candidate")

    def archive(self, reference: str) -> Version:
        """Put a version away; its artifact stays. See `stages.move`."""
        with self._database.writing() as connection:
            return stages.move(connection, parse_reference(reference), "archived")

    def rollback(self, model: str, *, expected: int) -> Version:
        """Bring the previous production version back. See `stages.rollback`."""
        with self._database.writing() as connection:
            return stages.rollback(connection, model, expected)

    def history(self, model: str) -> list[Change]:
        """All that happened to a model, oldest first."""
        with self._database.reading() as connection:
            rows.check_model(connection, model)
            found = connection.execute("SELECT record FROM changes WHERE model = ? ORDER BY id", (model,))
            return [Change.model_validate_json(row["record"]) for row in found]

    def _checked_report(self, version: Version, content: bytes) -> bytes:
        assert version.report is not None
        if hashlib.sha256(content).hexdigest() != version.report.sha256:
            raise RegistryError(
                f"{version.report.path}, the report of {version.name}, is gone or was changed: "
                f"rayloom evaluate {version.name} --attach"
            )
        return content

    def _keep(self, artifact: Artifact, digest: str) -> str:
        """The registry's own copy of an artifact, made once whatever the number of processes; anew if it is damaged."""

        def copy(folder: Path) -> None:
            for name in [*artifact.manifest.files, MANIFEST_FILE]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / name, folder / name)
            open_artifact(folder)  # every hash again: what is kept is what was registered

        kept = self.root / "artifacts" / digest[:32]
        storage.renew_folder(kept, copy, lambda: is_whole(kept, digest))
        return str(kept)


def is_whole(kept: Path, digest: str) -> bool:
    """Whether a folder holds the very artifact of a manifest's hash, undamaged."""
    try:
        return opened(str(kept))[1] == digest
    except ArtifactError:
        return False


def located(version: Version) -> str:
    """Where a version's artifact lies, if that is the registered one.

    Raises:
        RegistryError: It is another.
        ArtifactError: It is gone.
    """
    if manifest_digest(version.location) != version.digest:
        raise other_artifact(version)
    return version.location


def check_nothing_new(known: Version, parent: str | None, note: str) -> None:
    """Refuse to say more of an artifact that is registered already.

    Raises:
        RegistryError: There is a note or a parent that it does not have.
    """
    if (note and note != known.note) or parent is not None:
        raise RegistryError(
            f"{known.name} is this very artifact already; note and parent stay as they were registered: leave them out"
        )


def _insert(connection: sqlite3.Connection, version: Version) -> Version:
    connection.execute("INSERT OR IGNORE INTO models (name) VALUES (?)", (version.model,))
    (newest,) = connection.execute(
        "SELECT COALESCE(MAX(version), 0) FROM versions WHERE model = ?", (version.model,)
    ).fetchone()
    numbered = version.model_copy(update={"version": newest + 1})
    connection.execute(
        "INSERT INTO versions (model, version, digest, record) VALUES (?, ?, ?, ?)",
        (numbered.model, numbered.version, numbered.digest, numbered.model_dump_json(exclude={"stage"})),
    )
    rows.note(connection, numbered.model, numbered.version, "registered", numbered.lineage.source)
    return numbered


def _parent(connection: sqlite3.Connection, artifact: Artifact, given: str | None) -> str | None:
    if given is not None:
        return rows.find(connection, parse_reference(given)).name
    digest = trained_from(artifact)
    found = rows.version_by_digest(connection, digest) if digest is not None else None
    return found.name if found is not None else None
