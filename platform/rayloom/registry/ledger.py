"""What has happened to the models of a registry, in order, and the state that follows from it.

For stores that append one thing after another and have no other transactions. Everybody who reads the same events comes
to the same state: an event that is not allowed at its place changes nothing. So of two promotions at once the one that
was appended first counts, and the other is void because it was meant for another state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rayloom.config import GateConfig
from rayloom.errors import RegistryError
from rayloom.registry.finding import chosen
from rayloom.registry.records import Change, Report, Stage, Verdict, Version
from rayloom.registry.references import Reference
from rayloom.registry.refusals import check_move, check_promotion, moved_text, no_verdict, nothing_before, overtaken

Kind = Literal["gate", "measured", "judged", "promoted", "rolled back", "nominated", "archived"]
_MOVES: dict[Kind, Stage] = {"nominated": "candidate", "archived": "archived"}


class Event(BaseModel):
    """One thing that somebody wanted to happen."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)

    kind: Kind
    model: str
    at: str
    """ISO 8601, UTC."""
    who: str
    version: int | None = None
    """Of the model; None where the event is about all of them."""
    gate: GateConfig | None = None
    """``gate``: the new one."""
    report: Report | None = None
    """``measured``: the report."""
    verdict: Verdict | None = None
    """``judged``: what the gate said."""
    judged: int | None = None
    """``promoted``: number of the event with the verdict."""
    expected: int | None = None
    """``rolled back``: the version that was seen in production."""


@dataclass
class _Promotion:
    version: int
    state: Literal["current", "replaced", "taken back"] = "current"


@dataclass
class Ledger:
    """The state of one model.

    Attributes:
        versions: As they were registered, by number.
        gate: Its gate.
        changes: What has happened.
        verdicts: Of the gate, by number.
        last: Number of the last event that was looked at.
        void: Why events had no effect, by number.
    """

    versions: dict[int, Version]
    gate: GateConfig = field(default_factory=GateConfig)
    changes: list[Change] = field(default_factory=list)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    last: int = 0
    void: dict[int, RegistryError] = field(default_factory=dict)
    _promotions: list[_Promotion] = field(default_factory=list)

    @classmethod
    def replayed(cls, model: str, versions: Iterable[Version], events: Mapping[int, Event]) -> Ledger:
        """The state after all events.

        Args:
            model: Whose state.
            versions: Of this model, as they were registered.
            events: Of all models, by number.
        """
        ledger = cls({version.version: version for version in versions})
        for number in sorted(events):
            ledger.last = number
            if events[number].model == model:
                try:
                    ledger.apply(number, events[number])
                except RegistryError as error:
                    ledger.void[number] = error
        return ledger

    @property
    def production(self) -> int | None:
        """The version in production."""
        return next((number for number, each in self.versions.items() if each.stage == "production"), None)

    def all(self) -> list[Version]:
        """The versions, oldest first."""
        return [self.versions[number] for number in sorted(self.versions)]

    def apply(self, number: int, event: Event) -> None:
        """Let an event happen, or refuse it and change nothing.

        Args:
            number: Of the event.
            event: To happen.

        Raises:
            RegistryError: It is not allowed in this state.
        """
        if event.kind == "gate":
            assert event.gate is not None
            self.gate = event.gate
            self._note(event, None, "gate changed", event.gate.model_dump_json(exclude_unset=True))
        elif event.kind == "measured":
            version = self._version(event, event.version)
            assert event.report is not None
            self._change(version, report=event.report)
            self._note(event, version.version, "measured", f"report {event.report.sha256[:12]}")
        elif event.kind == "judged":
            self._judge(number, event)
        elif event.kind == "promoted":
            self._promote(event)
        elif event.kind == "rolled back":
            self._roll_back(event)
        else:
            version, stage = self._version(event, event.version), _MOVES[event.kind]
            check_move(version)
            self._change(version, stage=stage)
            self._note(event, version.version, moved_text(stage))

    def previous(self) -> Version:
        """The version that a rollback would bring back.

        Raises:
            RegistryError: There is none.
        """
        earlier = [each for each in self._promotions if each.state == "replaced"]
        if not earlier:
            model = next((version.model for version in self.versions.values()), "")
            raise nothing_before(model)
        return self.versions[earlier[-1].version]

    def _judge(self, number: int, event: Event) -> None:
        assert event.verdict is not None
        verdict = event.verdict.model_copy(update={"id": number})
        self._version(event, verdict.version)
        self.verdicts[number] = verdict
        self._note(event, verdict.version, "passed" if verdict.passed else "failed", "the gate")

    def _promote(self, event: Event) -> None:
        number = event.judged or 0
        if number not in self.verdicts:
            raise no_verdict(number)
        verdict, old = self.verdicts[number], self.production
        version = self._version(event, verdict.version)
        check_promotion(verdict, version, production=self.versions[old] if old else None, gate=self.gate)
        self._leave("replaced")
        self._promotions.append(_Promotion(version.version))
        self._change(version, stage="production")
        self._note(event, version.version, "promoted", f"in place of {old}" if old else "the first")

    def _roll_back(self, event: Event) -> None:
        if self.production != event.expected:
            raise overtaken(event.model, event.expected, self.production)
        version = self.previous()
        earlier = next(each for each in reversed(self._promotions) if each.state == "replaced")
        self._leave("taken back")
        earlier.state = "current"
        self._change(version, stage="production")
        self._note(event, version.version, "rolled back to", f"in place of {event.expected}")

    def _leave(self, state: Literal["replaced", "taken back"]) -> None:
        """Whatever is in production is archived."""
        for promotion in self._promotions:
            if promotion.state == "current":
                promotion.state = state
        if self.production is not None:
            self._change(self.versions[self.production], stage="archived")

    def _version(self, event: Event, number: int | None) -> Version:
        return chosen(self.all(), Reference(event.model, number))

    def _change(self, version: Version, **values: object) -> None:
        self.versions[version.version] = version.model_copy(update=values)

    def _note(self, event: Event, version: int | None, action: str, detail: str = "") -> None:
        self.changes.append(Change(at=event.at, who=event.who, version=version, action=action, detail=detail))
