"""The Grafana dashboard and the page of documentation name metrics, and labels, that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayloom.serving.arms import ArmCall
from rayloom.serving.calls import Started
from rayloom.serving.observing.metrics import Metrics
from rayloom.serving.observing.records import CallRecord, Record
from tests.fakes_serving import FIGURES, TIMING

ROOT = Path(__file__).parents[4]
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "rayloom.json").read_text(encoding="utf-8"))
_OURS = re.compile(r"rayloom_\w+")
_GRAFANAS = {"le"}


def samples() -> dict[str, set[str]]:
    """Names of all samples, with their labels, once there is one of each kind."""
    metrics = Metrics()
    call = CallRecord(Started("m", "", 1, adapter="a"), 5, TIMING)
    shared: dict[str, Any] = {"route": "/generate", "calls": [call], "gaps_s": [0.1], "first_s": 0.1}
    metrics.add(Record(status=200, reason="internal", **shared))
    metrics.add(Record(status=499, is_gone=True, **shared))
    metrics.repeated.labels("m").inc()
    metrics.arms.ended(ArmCall("split", "arm", is_shadow=True, status=200, seconds=0.5, num_tokens=3))
    metrics.text([FIGURES], "")
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_a_panel_asks_for_what_there_is(title: str, expression: str) -> None:
    known = samples()
    asked = set(_OURS.findall(expression))
    assert asked
    assert asked <= known.keys()
    labels = {label for name in asked for label in known[name]}
    selected = re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression)
    grouped = [each.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for each in group.split(",")]
    assert {*selected, *grouped} <= labels | _GRAFANAS
    assert expression.count("(") == expression.count(")")


def test_counts_are_shown_as_rates() -> None:
    for _, expression in expressions():
        for name in re.findall(r"rayloom_\w+_(?:total|bucket|sum|count)", expression):
            assert re.search(rf"rate\({name}\{{", expression)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
               for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not own & taken
        taken |= own


def test_every_metric_is_documented() -> None:
    told = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    documented = set(_OURS.findall(told))
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples() if not name.endswith("_created")}
    assert ours == documented
