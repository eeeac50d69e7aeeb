"""What differs between two versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayloom.registry.records import Version

_PLACES = ("output.",)
"""Config keys that say where files go; they differ from run to run and mean nothing."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two versions differ.

    Attributes:
        part: ``lineage``, ``config`` or ``metrics``.
        key: Dotted key in it.
        one: What the first has; None for nothing.
        two: What the second has.
    """

    part: str
    key: str
    one: Any
    two: Any

    @property
    def change(self) -> float | None:
        """Second minus first; None where either is no finite number."""
        numbers = [value for value in (self.one, self.two) if isinstance(value, int | float)]
        if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
            return None
        return float(numbers[1] - numbers[0])


def differences(one: Version, two: Version) -> list[Difference]:
    """In lineage, config and metrics, in this order; equal values are left out."""
    parts = {
        "lineage": (_lineage(one), _lineage(two)),
        "config": (_flat(one.lineage.config), _flat(two.lineage.config)),
        "metrics": (metrics_of(one), metrics_of(two)),
    }
    return [
        Difference(part, key, first.get(key), second.get(key))
        for part, (first, second) in parts.items()
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key) and not key.startswith(_PLACES)
    ]


def metrics_of(version: Version) -> dict[str, float]:
    """Those of the evaluation report, else those that the artifact carries from its training."""
    return dict(version.report.metrics if version.report else version.metrics)


def _lineage(version: Version) -> dict[str, Any]:
    lineage = version.lineage
    names = ("run", "created", "data_hash", "code_version", "commit", "base", "parent")
    return {name: getattr(lineage, name) for name in names}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found
