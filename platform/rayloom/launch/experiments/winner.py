"""Which row is best, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.config import EvaluationConfig
from rayloom.evaluation.summary import significance
from rayloom.launch.experiments.columns import Column, Value, column
from rayloom.launch.experiments.plan import Plan, short, value_text
from rayloom.launch.experiments.tables import Row

_SIGNIFICANT = 0.05


def headline(plan: Plan, rows: Sequence[Row]) -> str | None:
    """One sentence; None before two rows have the figure that decides, or where no column is a quality."""
    names = [plan.experiment.best] if plan.experiment.best else plan.experiment.columns
    name = next((name for name in names if plan.experiment.best or column(name).is_quality), None)
    if name is None or any(row.state for row in rows):
        return None
    known = [(row, value) for row in rows if (value := row.value(name)) is not None]
    if len(known) < 2:
        return None
    shown = column(name)
    best, value = _best(known, shown)
    start = f"{_name(plan, best)} has the best {shown.label}: {shown.text(value.value)}"
    return f"{start}; {_compared(plan, name, best, [row for row, _ in known if row is not best])}"


def _best(known: Sequence[tuple[Row, Value]], shown: Column) -> tuple[Row, Value]:
    sign = 1 if shown.smaller_is_better else -1
    return min(known, key=lambda pair: sign * pair[1].value)


def _compared(plan: Plan, name: str, best: Row, others: Sequence[Row]) -> str:
    tests = [(row, _p_value(name, best, row)) for row in others]
    if plan.num_seeds > 1 or any(p_value is None for _, p_value in tests):
        return "no test was made of the difference"
    close = [row for row, p_value in tests if p_value is not None and p_value >= _SIGNIFICANT]
    if not close:
        return "significantly better than every other row"
    names = ", ".join(_name(plan, row) for row in close)
    rest = "" if len(close) == len(others) else ", significantly better than the others"
    return f"not significantly better than {names}{rest}"


def _p_value(name: str, best: Row, other: Row) -> float | None:
    """Of the paired test on the rows that both have answered; None where they cannot be paired."""
    mine, theirs = (row.records[0].result for row in (best, other))
    if mine is None or theirs is None:
        return None
    options = EvaluationConfig.model_validate(mine.evaluation)
    found = significance(mine.splits[0], theirs.splits[0], options).get(name)
    return found.p_value if found is not None else None


def _name(plan: Plan, row: Row) -> str:
    parts = [row.system] if len(plan.experiment.systems) > 1 else []
    return ", ".join([*parts, *(f"{short(key)} {value_text(value)}" for key, value in row.point)]) or row.system
