"""Data files to rows. Every error names the file, and the row and column where there is one."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayloom.data.characters import check_unicode, not_utf8
from rayloom.data.rows import Row, SourceRow
from rayloom.errors import DataError

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
TEXT_KINDS = (".txt", ".md")
PARAGRAPH_GAP = re.compile(r"\n[^\S\n]*\n\s*")


def read_rows(path: str | Path, *, text_column: str = "text", text_unit: str = "document") -> list[Row]:
    """The rows of one data file, read by its suffix.

    ``.json`` (a list of objects, or ``{"data": [...]}``), ``.jsonl`` / ``.ndjson``, ``.csv`` / ``.tsv`` (with
    a header), ``.parquet``, ``.txt`` / ``.md``. Text is UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        text_column: Column that plain text goes into.
        text_unit: Plain text: one row per ``document`` (the file), ``paragraph`` or ``line``.

    Returns:
        At least one row, each knowing its place: the line in JSON Lines and text files, the record in CSV
        (the header is row 1), else the element, from 1.

    Raises:
        DataError: No such file, a kind that is not known, an empty or broken file, text that is not UTF-8.
    """
    file = Path(path)
    suffix = kind_of(path)
    if suffix == ".parquet":
        rows = _parquet_rows(str(path))
    elif suffix in TEXT_KINDS:
        rows = text_rows(_read_text(file), str(path), text_column, text_unit)
    else:
        rows = _READERS[suffix](_read_text(file), str(path))
    if not rows:
        raise DataError("the file has no rows", file=path)
    for row in rows:
        check_unicode(row)
    return rows


def kind_of(path: str | Path) -> str:
    """A data file's suffix in lower case.

    Raises:
        DataError: No such file, or a kind that is not known.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("this is a folder, a file is wanted" if file.is_dir() else "there is no such file", file=path)
    suffix = file.suffix.lower()
    known = (*_READERS, ".parquet", *TEXT_KINDS)
    if suffix not in known:
        raise DataError(f"files of the kind '{suffix}' are not known; known are {', '.join(known)}", file=path)
    return suffix


def _read_text(file: Path) -> str:
    """The file's text; bytes that are not UTF-8 become lone surrogates, which the row check then places."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", file=file) from error
    if data.startswith(UTF16_MARKS):
        raise DataError("the file is UTF-16; save it as UTF-8", file=file)
    text = data.decode("utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise DataError("the file is empty", file=file)
    return text


def _json_rows(text: str, path: str) -> list[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return jsonl_rows(text, path)  # JSON Lines under the other name, as many tools write them
        place = f"line {error.lineno}, character {error.colno}"
        raise DataError(f"broken JSON at {place}: {error.msg}", file=path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(_refusal(error), file=path) from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError('a list of objects is wanted, or {"data": [...]}', file=path)
    return [_object_row(element, path, number) for number, element in enumerate(content, start=1)]


def jsonl_rows(text: str, path: str, first: int = 1) -> list[Row]:
    """The rows of JSON Lines.

    Args:
        text: Whole lines.
        path: Their file, for errors.
        first: Number of the first line in it.
    """
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=first):
        if not line.strip():
            continue
        try:
            element = json.loads(line)
        except json.JSONDecodeError as error:
            hint = "; this looks like a JSON list: name the file .json" if line.strip() == "[" else ""
            raise DataError(
                f"broken JSON: {error.msg}, at character {error.colno}{hint}", file=path, row=number
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(_refusal(error), file=path, row=number) from error
        rows.append(_object_row(element, path, number))
    return rows


def _refusal(error: ValueError | RecursionError) -> str:
    """What to say of JSON that is not broken, but that Python does not read."""
    if isinstance(error, RecursionError):
        return "lists or objects stand too deep inside one another"
    return "a number has too many digits; put quotes around it"


def _object_row(element: Any, path: str, number: int) -> SourceRow:
    if not isinstance(element, dict):
        raise DataError(f"an object is wanted, this is a {type(element).__name__}", file=path, row=number)
    return SourceRow(element, path, number)


def csv_rows(text: str, path: str, delimiter: str = ",", *, header: tuple[str, ...] = (), first: int = 1) -> list[Row]:
    """The rows of comma-separated values.

    Args:
        text: Whole records.
        path: Their file, for errors.
        delimiter: Between cells.
        header: Names of the columns; the first record has them where not given.
        first: Number of the first record in the file.
    """
    rows: list[Row] = []
    lines = io.StringIO(text, newline="")
    for number, cells in enumerate(records(lines, path, delimiter, first=first), start=first):
        if not cells:
            continue
        if not header:
            header = checked_header(cells, path, number)
        elif len(cells) != len(header):
            raise DataError(
                f"{len(cells)} cells where the header has {len(header)}; quote cells that contain "
                f"{delimiter!r} or line breaks",
                file=path,
                row=number,
            )
        else:
            rows.append(SourceRow(dict(zip(header, cells, strict=True)), path, number))
    return rows


def _tsv_rows(text: str, path: str) -> list[Row]:
    return csv_rows(text, path, "\t")


def records(lines: Iterable[str], path: str, delimiter: str, *, first: int = 1) -> Iterator[list[str]]:
    """The records of CSV lines, empty ones too; takes no line before it is needed.

    Args:
        lines: With their line ends.
        path: Their file, for errors.
        delimiter: Between cells.
        first: Number of the first record.

    Raises:
        DataError: Broken quotes.
    """
    old_limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long documents
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = first - 1
    try:
        for cells in reader:
            number += 1
            yield cells
    except csv.Error as error:
        raise DataError(f"broken CSV: {error} (line {reader.line_num})", file=path, row=number + 1) from error
    finally:
        csv.field_size_limit(old_limit)


def checked_header(names: list[str], path: str, number: int) -> tuple[str, ...]:
    """Names of columns, without spaces around them.

    Raises:
        DataError: One has no name, or two have the same.
    """
    check_unicode(SourceRow(dict.fromkeys(names), path, number))
    names = [name.strip() for name in names]
    for place, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"column {place} has no name in the header", file=path, row=number)
        if names.count(name) > 1:
            raise DataError("the header has this name twice", file=path, row=number, column=name)
    return tuple(names)


def text_rows(text: str, path: str, column: str, unit: str, first: int = 1) -> list[Row]:
    """The rows of plain text.

    Args:
        text: Whole lines, paragraphs or documents.
        path: Their file, for errors.
        column: The column that they go into.
        unit: What a row is.
        first: Number of the first line in the file.
    """
    text = text.replace("\r\n", "\n")
    if unit == "line":
        parts = list(enumerate(text.split("\n"), start=first))
    elif unit == "paragraph":
        parts = _paragraphs(text, first)
    else:
        parts = [(first, text)]
    return [SourceRow({column: part}, path, number) for number, part in parts if part.strip()]


def _paragraphs(text: str, line: int) -> list[tuple[int, str]]:
    """Paragraphs with the line they start at; the text itself starts at ``line``."""
    parts: list[tuple[int, str]] = []
    position = 0
    for gap in [*PARAGRAPH_GAP.finditer(text), None]:
        part = text[position : gap.start() if gap else len(text)]
        parts.append((line, part))
        if gap:
            line += text.count("\n", position, gap.end())
            position = gap.end()
    return parts


def _parquet_rows(path: str) -> list[Row]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"broken Parquet: {error}", file=path) from error
    return table_rows(table, path)


def table_rows(table: Any, path: str, first: int = 1) -> list[Row]:
    """The rows of a pyarrow table or record batch.

    Args:
        table: The rows.
        path: Their file, for errors.
        first: Number of the first row in it.

    Raises:
        DataError: Text that is not UTF-8.
    """
    try:
        elements = table.to_pylist()
    except UnicodeDecodeError as error:
        raise _parquet_encoding_error(table, path, first) from error
    return [SourceRow(element, path, number) for number, element in enumerate(elements, start=first)]


def _parquet_encoding_error(table: Any, path: str, first: int) -> DataError:
    for name in table.schema.names:
        for number, value in enumerate(table[name], start=first):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                return DataError(not_utf8(error.object[error.start]), file=path, row=number, column=name)
    return DataError("text that is not UTF-8", file=path)


_READERS: dict[str, Callable[[str, str], list[Row]]] = {
    ".json": _json_rows,
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".csv": csv_rows,
    ".tsv": _tsv_rows,
}
