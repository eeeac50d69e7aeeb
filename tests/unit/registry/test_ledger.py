"""The ledger against the embedded registry: the same changes, allowed or refused alike, and the same state."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayloom.config import GateConfig, config_hash
from rayloom.errors import RegistryError
from rayloom.registry import Check, Registry, Verdict
from rayloom.registry.ledger import Event, Ledger
from tests.unit.registry.publishing import publish_artifact

NUM_VERSIONS = 3
VERSIONS = st.integers(1, NUM_VERSIONS)
CHANGES = st.one_of(
    st.tuples(st.just("judge"), VERSIONS, st.booleans()),
    st.tuples(st.just("promote"), st.integers(1, 4), st.none()),
    st.tuples(st.just("rollback"), VERSIONS, st.none()),
    st.tuples(st.sampled_from(["nominate", "archive"]), VERSIONS, st.none()),
    st.tuples(st.just("gate"), VERSIONS, st.none()),
)


class Both:
    """An embedded registry and a ledger that are asked for the same."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder / "registry")
        for number in range(NUM_VERSIONS):
            self.registry.register("qa", publish_artifact(folder, f"run{number}"))
        self.versions = self.registry.versions("qa")
        self.events: dict[int, Event] = {}
        self.judged: list[tuple[int, int]] = []
        """Numbers of verdicts: the registry's and the ledger's."""

    def ledger(self) -> Ledger:
        return Ledger.replayed("qa", self.versions, self.events)

    def change(self, what: str, number: int, passed: bool | None) -> None:
        if what == "judge":
            self.judge(number, passed=bool(passed))
        elif what == "promote" and len(self.judged) >= number:
            ours, theirs = self.judged[-number]
            self.both(lambda: self.registry.promote(ours), kind="promoted", judged=theirs)
        elif what == "rollback":
            self.both(lambda: self.registry.rollback("qa", expected=number), kind="rolled back", expected=number)
        elif what == "nominate":
            self.both(lambda: self.registry.nominate(f"qa@{number}"), kind="nominated", version=number)
        elif what == "archive":
            self.both(lambda: self.registry.archive(f"qa@{number}"), kind="archived", version=number)
        elif what == "gate":
            gate = GateConfig(max_latency_p95_s=float(number))
            self.both(lambda: self.registry.set_gate("qa", gate), kind="gate", gate=gate)

    def judge(self, number: int, *, passed: bool) -> None:
        production = self.registry.production("qa")
        verdict = Verdict(
            model="qa",
            version=number,
            digest=self.versions[number - 1].digest,
            production=production.version if production else None,
            gate_hash=config_hash(self.registry.gate("qa")),
            report_hash=None,
            checks=(Check(name="always", passed=passed, detail=""),),
            judged="",
        )
        recorded = self.registry.record(verdict)
        self.append(kind="judged", version=number, verdict=verdict)
        self.judged.append((recorded.id, len(self.events)))

    def both(self, ask: Any, **values: Any) -> None:
        expected = None
        try:
            ask()
        except RegistryError as error:
            expected = str(error)
        number = self.append(**values)
        refused = self.ledger().void.get(number)
        assert (str(refused) if refused else None) == expected

    def append(self, **values: Any) -> int:
        number = len(self.events) + 1
        self.events[number] = Event(model="qa", at="", who="", **values)
        return number


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CHANGES, max_size=14))
def test_a_ledger_comes_to_the_state_of_the_embedded_registry(changes: list[tuple[str, int, bool | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        both = Both(Path(folder))
        for change in changes:
            both.change(*change)
            ledger = both.ledger()
            found = [version.stage for version in ledger.all()]
            assert found == [version.stage for version in both.registry.versions("qa")]
            assert found.count("production") <= 1
        actions = [(each.action, each.version, each.detail) for each in both.ledger().changes]
        history = [(each.action, each.version, each.detail) for each in both.registry.history("qa")]
        assert actions == history[NUM_VERSIONS:]


def test_events_of_other_models_change_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        both = Both(Path(folder))
    events = {1: Event(kind="nominated", model="other", at="", who="", version=1)}
    ledger = Ledger.replayed("qa", both.versions, events)
    assert [version.stage for version in ledger.all()] == ["none"] * NUM_VERSIONS
    assert (ledger.last, ledger.void) == (1, {})
