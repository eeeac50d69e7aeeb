"""The summary of `make test-faults`."""

from __future__ import annotations

from tests.faults.disturbed import Outcome

OUTCOMES: list[Outcome] = []


def lines() -> list[str]:
    """One line per run, and the number of kills."""
    rows = [
        (
            str(outcome.cell),
            ", ".join(outcome.kills),
            ", ".join(map(str, outcome.announced)),
            ", ".join(map(str, outcome.resumed)),
            outcome.verdict,
        )
        for outcome in OUTCOMES
    ]
    table = [("run", "killed", "announced as saved", "resumed at", "losses and weights"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    texts = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table]
    equal = sum(len(outcome.kills) for outcome in OUTCOMES if outcome.verdict == "bit-equal")
    return [*texts, f"{equal} kills in runs that ended bit-equal"]
