"""An experiment's cells as the rows of its table, for people and as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayloom.launch.experiments.columns import Value, column, value_of
from rayloom.launch.experiments.plan import Cell, Plan, Point, short, value_text
from rayloom.launch.experiments.records import CellRecord


@dataclass(frozen=True)
class Row:
    """A line of the table: the cells that differ in their seed alone.

    Attributes:
        system: Its name.
        point: Values of what varies.
        cells: Each with what is known of it.
    """

    system: str
    point: Point
    cells: tuple[tuple[Cell, CellRecord | None], ...]

    @property
    def records(self) -> list[CellRecord]:
        """Those that have figures."""
        return [record for _, record in self.cells if record is not None and record.error is None]

    @property
    def state(self) -> str:
        """What stands in the way of figures; empty where they are whole."""
        errors = [record.error for _, record in self.cells if record is not None and record.error]
        if errors:
            return f"failed: {errors[0].splitlines()[0]}"
        return "" if len(self.records) == len(self.cells) else "not measured yet"

    def value(self, name: str) -> Value | None:
        """A figure: the mean over seeds with the range, or of one cell with its interval. None where it has none."""
        found = [value for record in self.records if (value := value_of(name, record)) is not None]
        if not found or len(found) < len(self.records):  # a mean over those that came well through would flatter
            return None
        if len(found) == 1:
            return found[0]
        values = [each.value for each in found]
        return Value(math.fsum(values) / len(values), min(values), max(values))


def table_rows(plan: Plan, records: Mapping[str, CellRecord]) -> list[Row]:
    """The rows of the table, in the order of the experiment's file."""
    grouped: dict[tuple[str, int], list[Cell]] = {}
    places: dict[str, list[Point]] = {}
    for cell in plan.cells:
        points = places.setdefault(cell.system, [])
        if cell.point not in points:
            points.append(cell.point)
        grouped.setdefault((cell.system, points.index(cell.point)), []).append(cell)
    return [
        Row(system, cells[0].point, tuple((cell, records.get(cell.key)) for cell in cells))
        for (system, _), cells in grouped.items()
    ]


def table(plan: Plan, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: what the row is, then its figures. The system's name is left out where there is only one."""
    names = plan.experiment.columns
    several = len(plan.experiment.systems) > 1
    header = [*(["system"] if several else []), *map(short, plan.experiment.vary)]
    body = []
    for row in rows:
        which = [*([row.system] if several else []), *(value_text(value) for _, value in row.point)]
        body.append([*which, *_figures(row, names)])
    return [*header, *(column(name).label for name in names)], body


def _figures(row: Row, names: Sequence[str]) -> list[str]:
    if not row.records:
        return [row.state, *("–" for _ in names[1:])]
    first, *others = (_text(name, row.value(name)) for name in names)
    if row.state:
        first = f"{first}; {len(row.records)} of {len(row.cells)} seeds, {row.state}"
    return [first, *others]


def _text(name: str, found: Value | None) -> str:
    if found is None:
        return "–"
    text = column(name).text
    if found.low is None or found.high is None or found.low == found.high:
        return text(found.value)
    low, high = (text(end).removesuffix(" %") for end in (found.low, found.high))
    return f"{text(found.value)} ({low} to {high})"


def csv_text(plan: Plan, records: Mapping[str, CellRecord]) -> str:
    """All figures as numbers, one line per cell, with what they were taken on."""
    lines = [_csv_line(plan, cell, records[cell.key]) for cell in plan.cells if cell.key in records]
    columns = ["system", *plan.experiment.vary, "seed"]
    for name in plan.experiment.columns:
        columns += [name, f"{name}_low", f"{name}_high"]
    buffer = io.StringIO()
    fields = [*columns, "num_rows", "error", "data_hash", "artifact_digest", "code", "machine", "measured"]
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _csv_line(plan: Plan, cell: Cell, record: CellRecord) -> dict[str, Any]:
    line: dict[str, Any] = {"system": cell.system, **dict(cell.point), "seed": cell.config.training.seed}
    for name in plan.experiment.columns:
        found = value_of(name, record) if record.error is None else None
        if found is not None:
            line |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    result, trained = record.result, record.trained
    info = result.artifact or {} if result is not None else {}
    return line | {
        "num_rows": result.splits[0].num_rows if result is not None else None,
        "error": record.error,
        "data_hash": trained.data_hash if trained is not None else info.get("data_hash"),
        "artifact_digest": trained.digest if trained is not None else info.get("digest"),
        "code": record.provenance.code,
        "machine": record.provenance.machine,
        "measured": record.provenance.at,
    }
