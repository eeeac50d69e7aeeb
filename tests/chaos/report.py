"""What was done to a service, and what its clients saw of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from tests.serving_load import Load


@dataclass
class Tally:
    """Of one model.

    Attributes:
        num_killed: Replicas.
        updates_s: Seconds from the promotion of a version, or its withdrawal, until all replicas were of the other one.
        statuses: How often each status came for whole answers; 0 for no answer at all.
        seconds: How long each whole answer took.
        problems: The first answers that were none.
        streams: How streams ended: ``whole``, with an ``error event``, or ``torn``, which none may be.
        num_repeated: Calls that were asked again, each time counted.
    """

    num_killed: int = 0
    updates_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    streams: Counter[str] = field(default_factory=Counter)
    num_repeated: int = 0

    def see(self, load: Load) -> None:
        """Count what clients of a load see, now and later."""
        self.statuses, self.seconds, self.problems = load.statuses, load.seconds, load.problems

    @property
    def num_failed(self) -> int:
        """Whole answers that were refused or never came."""
        return sum(count for status, count in self.statuses.items() if status != 200)

    def figures(self) -> dict[str, str]:
        """Column titles and cells of the table."""
        return {
            "requests": str(sum(self.statuses.values())),
            "failed": str(self.num_failed),
            "repeated": str(self.num_repeated),
            "p50 s": f"{quantile(self.seconds, 0.5):.2f}",
            "p95 s": f"{quantile(self.seconds, 0.95):.2f}",
            "slowest s": f"{max(self.seconds, default=math.nan):.2f}",
            "streams": ", ".join(f"{count} {how}" for how, count in sorted(self.streams.items(), reverse=True)),
            "kills": str(self.num_killed),
            "updates": str(len(self.updates_s)),
            "update s": f"{quantile(self.updates_s, 0.5):.0f} … {max(self.updates_s, default=math.nan):.0f}",
        }


@dataclass(frozen=True)
class Change:
    """A version that is on its way into service.

    Attributes:
        model: Its model.
        version: As the registry names it.
        began: When it came into the stage, by the monotonic clock.
    """

    model: str
    version: str
    began: float


@dataclass
class Report:
    """Of one run.

    Attributes:
        seconds: How long replicas were killed.
        change: What is under way; the last one may come to its end when nobody kills any more.
        models: By name.
    """

    seconds: float = 0.0
    change: Change | None = None
    models: dict[str, Tally] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The table, a column per model, and what went wrong."""
        cells = {name: tally.figures() for name, tally in self.models.items()}
        titles = list(next(iter(cells.values()), {}))
        rows = [("", *cells), *((title, *(each[title] for each in cells.values())) for title in titles)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        problems = [f"{name}: {text}" for name, tally in self.models.items() for text in tally.problems]
        return [f"{self.seconds:.0f} s", *table, *problems]


REPORTS: list[Report] = []
"""Of this session, for its summary."""


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least such a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
