"""Rows as the readers hand them on: dicts that remember their place in the file."""

from __future__ import annotations

from typing import Any

from rayloom.errors import DataError

Row = dict[str, Any]


class SourceRow(Row):
    """A row that knows where it was read, so that a later error can say so.

    Args:
        values: Column name to value.
        file: The data file or dataset name.
        number: Row in the file, from 1 (a CSV header counts as row 1).
    """

    __slots__ = ("file", "number")

    def __init__(self, values: Row, file: str = "", number: int = 0) -> None:
        super().__init__(values)
        self.file, self.number = file, number


def row_error(
    message: str, row: Row, *, column: str | None = None, file: str | None = None, number: int | None = None
) -> DataError:
    """A DataError at a row's own place.

    Args:
        message: What is wrong and how to mend it.
        row: The row; a SourceRow brings its file and number.
        column: The column.
        file: File for rows that bring none.
        number: Row number for rows that bring none.
    """
    if isinstance(row, SourceRow):
        file, number = row.file or file, row.number or number
    return DataError(message, file=file, row=number, column=column)
