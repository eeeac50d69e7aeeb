"""`MlflowRegistry`: the shared registry, in an MLflow tracking server or database.

A version is a model version of MLflow's, with its lineage as tags; its artifact and reports are files of MLflow runs.
MLflow has no transactions over several calls. What moves versions from stage to stage is therefore a log (`ledger`),
kept as the versions of a registered model of its own: MLflow appends one whole, with the next number, and nothing else
decides what is in production. Aliases and tags of stages show the log's outcome to MLflow's own users; they follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayloom.artifacts import Artifact, storage
from rayloom.config import GateConfig
from rayloom.registry import rows
from rayloom.registry.finding import chosen, no_model, summary
from rayloom.registry.ledger import Event, Kind, Ledger
from rayloom.registry.lineage import lineage_of, opened, trained_from
from rayloom.registry.mlflow_client import Mlflow
from rayloom.registry.mlflow_files import MlflowFiles
from rayloom.registry.records import Change, Lineage, ModelSummary, Stage, Verdict, Version
from rayloom.registry.references import Reference, check_model_name, parse_reference
from rayloom.registry.refusals import no_verdict
from rayloom.registry.store import Registry, check_nothing_new

LOG = "@rayloom-log"
"""Registered model whose versions are the events. No model of ours can have this name."""
_OURS, _RECORD, _EVENT, _STAGE = "rayloom.model", "rayloom.record", "rayloom.event", "rayloom.stage"
_WHO = "rayloom.who"
_ALIASES: tuple[Stage, ...] = ("candidate", "production", "archived")
_NOWHERE = "rayloom://registry/log"
"""An event has no files, and servers want an absolute place of every version."""
_MOST_TURNS = 10


class MlflowRegistry(Registry):
    """Versions of named models in MLflow, for any number of machines.

    Args:
        uri: ``http(s)://…`` of a tracking server, or ``sqlite:///…`` of a database with its files beside it.

    Raises:
        RegistryError: A URI that it cannot be kept at, or mlflow is not installed.
    """

    def __init__(self, uri: str) -> None:
        self.place = f"mlflow+{uri}"
        self._mlflow = Mlflow(uri)
        self._files = MlflowFiles(self._mlflow)
        self._has_log = False

    def register(
        self, model: str, artifact: str | Path, *, copy: bool = True, parent: str | None = None, note: str = ""
    ) -> Version:
        """See `Registry.register`. With ``copy`` the artifact is uploaded to MLflow."""
        check_model_name(model)
        local = storage.local_path(artifact)
        source = str(local.expanduser().absolute()) if local is not None else str(artifact)
        found, digest = opened(source)
        with self._mlflow.told():
            known = self._with_digest(digest, model)
            if known is not None:
                check_nothing_new(known, parent, note)
                return known
            lineage = lineage_of(found, source, self._parent(found, parent))
            self._mlflow.ensure_model(model, {_OURS: "yes"})
            run_id, location = self._files.upload(found, model, digest) if copy else (None, source)
            version = Version(
                model=model,
                version=1,
                digest=digest,
                location=location,
                registered=rows.now(),
                lineage=lineage,
                metrics=found.manifest.metrics,
                note=note,
            )
            return self._added(version, run_id)

    def attach_report(self, reference: str, content: bytes, metrics: Mapping[str, float]) -> Version:
        """See `Registry.attach_report`. The report becomes a file of an MLflow run, its figures that run's metrics."""
        version = self.get(reference)
        report = self._files.keep_report(version, content, metrics)
        self._append(_event("measured", version.model, version=version.version, report=report))
        return self.get(version.name)

    def read_report(self, version: Version) -> bytes:
        """See `Registry.read_report`."""
        return self._checked_report(version, self._files.report(version))

    def models(self) -> list[ModelSummary]:
        """See `Registry.models`."""
        with self._mlflow.told():
            names, events = self._names(), self._events()
            return [summary(name, Ledger.replayed(name, self._registered(name), events).all()) for name in names]

    def versions(self, model: str) -> list[Version]:
        """See `Registry.versions`."""
        return self._ledger(model).all()

    def get(self, reference: str) -> Version:
        """See `Registry.get`."""
        wanted = parse_reference(reference)
        return chosen(self._ledger(wanted.model).all(), wanted)

    def production(self, model: str) -> Version | None:
        """See `Registry.production`."""
        ledger = self._ledger(model)
        return ledger.versions[ledger.production] if ledger.production is not None else None

    def resolve(self, reference: str) -> str:
        """See `Registry.resolve`. What only MLflow can read is copied to the cache once, and every file is checked."""
        return self._files.local(self.get(reference))

    def gate(self, model: str) -> GateConfig:
        """See `Registry.gate`."""
        return self._ledger(model).gate

    def set_gate(self, model: str, gate: GateConfig) -> None:
        """See `Registry.set_gate`."""
        check_model_name(model)
        with self._mlflow.told():
            self._mlflow.ensure_model(model, {_OURS: "yes"})
        self._append(_event("gate", model, gate=gate))

    def record(self, verdict: Verdict) -> Verdict:
        """See `Registry.record`."""
        self.get(f"{verdict.model}@{verdict.version}")
        number = self._append(_event("judged", verdict.model, version=verdict.version, verdict=verdict))
        return verdict.model_copy(update={"id": number})

    def verdicts(self, reference: str) -> list[Verdict]:
        """See `Registry.verdicts`."""
        wanted = parse_reference(reference)
        ledger = self._ledger(wanted.model)
        number = chosen(ledger.all(), wanted).version
        return [verdict for _, verdict in sorted(ledger.verdicts.items()) if verdict.version == number]

    def promote(self, verdict: int) -> Version:
        """See `Registry.promote`. One append to the log: it counts if nothing came between, and else is void."""
        with self._mlflow.told():
            judged = self._events().get(verdict)
        if judged is None or judged.verdict is None:
            raise no_verdict(verdict)
        model, number = judged.model, judged.verdict.version
        event = _event("promoted", model, version=number, judged=verdict)
        ledger = self._ledger(model)
        self._files.check(chosen(ledger.all(), Reference(model, number)))
        ledger.apply(ledger.last + 1, event)  # refused already? Then it need not be tried.
        return self._moved(event, number)

    def nominate(self, reference: str) -> Version:
        """See `Registry.nominate`."""
        return self._move(reference, "nominated")

    def archive(self, reference: str) -> Version:
        """See `Registry.archive`."""
        return self._move(reference, "archived")

    def rollback(self, model: str, *, expected: int) -> Version:
        """See `Registry.rollback`. One append to the log, as `promote`."""
        event, ledger = _event("rolled back", model, expected=expected), self._ledger(model)
        before = ledger.previous() if ledger.production == expected else None
        if before is not None:
            self._files.check(before)
        ledger.apply(ledger.last + 1, event)
        assert ledger.production is not None
        return self._moved(event, ledger.production)

    def history(self, model: str) -> list[Change]:
        """See `Registry.history`."""
        ledger = self._ledger(model)
        with self._mlflow.told():
            who = {int(each.version): each.tags.get(_WHO, "") for each in self._mlflow.versions(model)}
        born = [
            Change(
                at=each.registered,
                who=who.get(each.version, ""),
                version=each.version,
                action="registered",
                detail=each.lineage.source,
            )
            for each in ledger.all()
        ]
        return sorted([*born, *ledger.changes], key=lambda change: change.at)

    def show_stages(self, model: str, ledger: Ledger | None = None) -> None:
        """Make MLflow's aliases and tags of a model say what the log says; every change of ours ends with this.

        A process that was killed before it came here leaves them behind, until the next change.

        Args:
            model: Of this name.
            ledger: Its state, where that is known already.
        """
        with self._mlflow.told():
            seen = ledger or self._ledger(model)
            for _ in range(_MOST_TURNS):
                self._show(model, seen)
                # Somebody else's change meanwhile: whoever writes last must have seen the last state.
                before, seen = seen.last, self._ledger(model)
                if seen.last == before:
                    return

    def _show(self, model: str, ledger: Ledger) -> None:
        client, versions = self._mlflow.client, ledger.all()
        wanted = {each.stage: each.version for each in versions if each.stage in _ALIASES}  # the newest of each
        there = self._mlflow.aliases(model)
        for alias in _ALIASES:
            if alias in wanted and there.get(alias) != wanted[alias]:
                client.set_registered_model_alias(model, alias, str(wanted[alias]))
            elif alias not in wanted and alias in there:
                client.delete_registered_model_alias(model, alias)
        shown = {int(each.version): each.tags.get(_STAGE) for each in self._mlflow.versions(model)}
        for each in versions:
            if shown.get(each.version) != each.stage:
                client.set_model_version_tag(model, str(each.version), _STAGE, each.stage)

    def _move(self, reference: str, kind: Kind) -> Version:
        version = self.get(reference)
        event = _event(kind, version.model, version=version.version)
        ledger = self._ledger(version.model)
        ledger.apply(ledger.last + 1, event)
        return self._moved(event, version.version)

    def _moved(self, event: Event, number: int) -> Version:
        """Append a change of stages, and see whether it counts."""
        place = self._append(event)
        ledger = self._ledger(event.model)
        if place in ledger.void:
            raise ledger.void[place]
        self.show_stages(event.model, ledger)
        # As it was right after the change: somebody else's may have followed.
        return ledger.versions[number]

    def _append(self, event: Event) -> int:
        with self._mlflow.told():
            if not self._has_log:
                self._mlflow.ensure_model(LOG, {})
                self._has_log = True
            content = event.model_dump_json(exclude_unset=True)
            return self._mlflow.append(LOG, source=_NOWHERE, tags={_EVENT: content, "rayloom.kind": event.kind})

    def _events(self) -> dict[int, Event]:
        found = self._mlflow.versions(LOG)
        return {int(each.version): Event.model_validate_json(each.tags[_EVENT]) for each in found}

    def _ledger(self, model: str) -> Ledger:
        with self._mlflow.told():
            check_model_name(model)
            # The log first: a version that an event is about was there before the event.
            events = self._events()
            versions = self._registered(model)
            if not versions and model not in (names := self._names()):
                raise no_model(model, names)
            return Ledger.replayed(model, versions, events)

    def _names(self) -> list[str]:
        return self._mlflow.models(_OURS)

    def _registered(self, model: str) -> list[Version]:
        """The versions as they were registered; others' versions of a model of the same name are not ours."""
        found = [each for each in self._mlflow.versions(model) if _RECORD in each.tags]
        return [_version(each) for each in found]

    def _with_digest(self, digest: str, model: str) -> Version | None:
        first = next((each for each in self._registered(model) if each.digest == digest), None)
        return self.get(first.name) if first is not None else None

    def _parent(self, artifact: Artifact, given: str | None) -> str | None:
        if given is not None:
            return self.get(given).name
        digest = trained_from(artifact)
        if digest is None:
            return None
        every = (each for name in self._names() for each in self._registered(name))
        return next((each.name for each in every if each.digest == digest), None)

    def _added(self, version: Version, run_id: str | None) -> Version:
        """The next version; where somebody registers the same artifact at once, the first of the two is the one."""
        record = version.model_dump_json(exclude={"stage", "report"})
        tags = {_RECORD: record, _WHO: rows.who(), "rayloom.digest": version.digest, **_lineage_tags(version.lineage)}
        number = self._mlflow.append(version.model, source=version.location, tags=tags, run_id=run_id)
        first = next(each for each in self._registered(version.model) if each.digest == version.digest)
        if first.version < number:
            self._mlflow.client.delete_model_version(version.model, str(number))
        return self.get(first.name)


def _event(kind: Kind, model: str, **values: Any) -> Event:
    return Event(kind=kind, model=model, at=rows.now(), who=rows.who(), **values)


def _version(found: Any) -> Version:
    # The number is MLflow's: it is not known before.
    return Version.model_validate_json(found.tags[_RECORD]).model_copy(update={"version": int(found.version)})


def _lineage_tags(lineage: Lineage) -> dict[str, str]:
    """Lineage as MLflow's users look for it; the whole of it stands in the record."""
    names = ("run", "data_hash", "config_hash", "code_version", "commit", "base", "parent", "source")
    values = {name: getattr(lineage, name) for name in names}
    return {f"rayloom.{name}": str(value) for name, value in values.items() if value is not None}
