"""Data files to rows. Every error names the file, and the row and column where there is one."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayloom.data.rows import Row, SourceRow, row_error
from rayloom.errors import DataError

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARAGRAPH_GAP = re.compile(r"\n[^\S\n]*\n\s*")


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
    suffix = file.suffix.lower()
    if not file.is_file():
        raise DataError("this is a folder, a file is wanted" if file.is_dir() else "there is no such file", file=path)
    if suffix == ".parquet":
        rows = _parquet_rows(str(path))
    elif suffix in (".txt", ".md"):
        rows = _text_rows(_read_text(file), str(path), text_column, text_unit)
    elif suffix in _READERS:
        rows = _READERS[suffix](_read_text(file), str(path))
    else:
        known = ", ".join((*_READERS, ".parquet", ".txt", ".md"))
        raise DataError(f"files of the kind '{suffix}' are not known; known are {known}", file=path)
    if not rows:
        raise DataError("the file has no rows", file=path)
    for row in rows:
        _check_unicode(row)
    return rows


def _read_text(file: Path) -> str:
    """The file's text; bytes that are not UTF-8 become lone surrogates, which the row check then places."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", file=file) from error
    if data.startswith(_UTF16_MARKS):
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
            return _jsonl_rows(text, path)  # JSON Lines under the other name, as many tools write them
        place = f"line {error.lineno}, character {error.colno}"
        raise DataError(f"broken JSON at {place}: {error.msg}", file=path) from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError('a list of objects is wanted, or {"data": [...]}', file=path)
    return [_object_row(element, path, number) for number, element in enumerate(content, start=1)]


def _jsonl_rows(text: str, path: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            element = json.loads(line)
        except json.JSONDecodeError as error:
            hint = "; this looks like a JSON list: name the file .json" if line.strip() == "[" else ""
            raise DataError(
                f"broken JSON: {error.msg}, at character {error.colno}{hint}", file=path, row=number
            ) from error
        rows.append(_object_row(element, path, number))
    return rows


def _object_row(element: Any, path: str, number: int) -> SourceRow:
    if not isinstance(element, dict):
        raise DataError(f"an object is wanted, this is a {type(element).__name__}", file=path, row=number)
    return SourceRow(element, path, number)


def _csv_rows(text: str, path: str, delimiter: str = ",") -> list[Row]:
    rows: list[Row] = []
    header: list[str] = []
    for number, cells in enumerate(_records(text, path, delimiter), start=1):
        if not cells:
            continue
        if not header:
            header = _checked_header(cells, path, number)
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
    return _csv_rows(text, path, "\t")


def _records(text: str, path: str, delimiter: str) -> Iterator[list[str]]:
    old_limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long documents
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    number = 0
    try:
        for cells in reader:
            number += 1
            yield cells
    except csv.Error as error:
        raise DataError(f"broken CSV: {error} (line {reader.line_num})", file=path, row=number + 1) from error
    finally:
        csv.field_size_limit(old_limit)


def _checked_header(names: list[str], path: str, number: int) -> list[str]:
    _check_unicode(SourceRow(dict.fromkeys(names), path, number))
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"column {place} has no name in the header", file=path, row=number)
        if names.count(name) > 1:
            raise DataError("the header has this name twice", file=path, row=number, column=name)
    return [name.strip() for name in names]


def _text_rows(text: str, path: str, column: str, unit: str) -> list[Row]:
    text = text.replace("\r\n", "\n")
    if unit == "line":
        parts = list(enumerate(text.split("\n"), start=1))
    elif unit == "paragraph":
        parts = _paragraphs(text)
    else:
        parts = [(1, text)]
    return [SourceRow({column: part}, path, number) for number, part in parts if part.strip()]


def _paragraphs(text: str) -> list[tuple[int, str]]:
    """Paragraphs with the line they start at."""
    parts: list[tuple[int, str]] = []
    position, line = 0, 1
    for gap in [*_PARAGRAPH_GAP.finditer(text), None]:
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
    try:
        elements = table.to_pylist()
    except UnicodeDecodeError as error:
        raise _parquet_encoding_error(table, path) from error
    return [SourceRow(element, path, number) for number, element in enumerate(elements, start=1)]


def _parquet_encoding_error(table: Any, path: str) -> DataError:
    for name in table.column_names:
        for number, value in enumerate(table[name], start=1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                return DataError(_not_utf8(error.object[error.start]), file=path, row=number, column=name)
    return DataError("text that is not UTF-8", file=path)


def _check_unicode(row: Row) -> None:
    for column, value in row.items():
        for text in _texts(value):
            _check_text(text, row, column)
        _check_text(column, row, None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _check_text(text: str, row: Row, column: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        where = f"line {text.count(chr(10), 0, error.start) + 1} of the text: " if "\n" in text else ""
        if 0xDC80 <= code <= 0xDCFF:  # what surrogateescape makes of a byte
            message = _not_utf8(code - 0xDC00)
        else:
            message = f"half a character (\\u{code:04x}) stands alone; write whole characters"
        raise row_error(where + message, row, column=column) from error


def _not_utf8(byte: int) -> str:
    return f"byte 0x{byte:02X} is not UTF-8; save the file as UTF-8"


_READERS: dict[str, Callable[[str, str], list[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}
