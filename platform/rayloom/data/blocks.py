"""Data files in blocks: stretches of a few megabytes, each of which can be read without the rest of the file.

Where blocks begin is a pure function of the file's content, so the rows of all blocks, one block after the other, are
the rows that `rayloom.data.read_rows` gives, whoever reads which block.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rayloom.data.characters import check_unicode
from rayloom.data.rows import Row, SourceRow
from rayloom.data.sources import (
    TEXT_KINDS,
    UTF16_MARKS,
    checked_header,
    csv_rows,
    jsonl_rows,
    kind_of,
    records,
    table_rows,
    text_rows,
)
from rayloom.errors import DataError

BLOCK_BYTES = 4 << 20
PART_CHARACTERS = 1 << 20
"""A longer plain text document is read in parts of about so many characters, each a row."""

_PIECE = 1 << 20
_WINDOW = 1 << 16
"""How far to look for a good place to cut a text."""
_BATCH_ROWS = 512
_LONGEST_ROW = 64 << 20
"""A longer line of a ``.json`` file is taken for a list."""
_BYTE_BREAKS = tuple(re.compile(pattern) for pattern in (rb"\n[^\S\n]*\n\s*", rb"\n", rb"[ \t]+"))
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n[^\S\n]*\n\s*", r"\n", r"\s+"))
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Reading:
    """How plain text becomes rows.

    Args:
        text_column: Column that it goes into.
        text_unit: One row per ``document``, ``paragraph`` or ``line``.
    """

    text_column: str = "text"
    text_unit: str = "document"


@dataclass(frozen=True)
class Block:
    """A stretch of a file.

    Args:
        file: The file.
        start: First byte; of Parquet, the first row group.
        stop: Where it ends; the next block starts there.
        first: Number of its first line, record or row in the file, from 1.
        size: Bytes of its rows.
        header: Names of the columns (CSV).
    """

    file: str
    start: int
    stop: int
    first: int
    size: int
    header: tuple[str, ...] = ()


def cut_file(path: str, reading: Reading, *, block_bytes: int = BLOCK_BYTES) -> tuple[str, list[Block]]:
    """Read a file through once, holding little of it.

    Args:
        path: The file.
        reading: How plain text becomes rows.
        block_bytes: Blocks are at least so long, and end where a row does.

    Returns:
        SHA-256 of its content, and its blocks.

    Raises:
        DataError: No such file, a kind that cannot be read in blocks, an empty or a broken file.
    """
    kind, file = kind_of(path), Path(path)
    if not file.stat().st_size:
        raise DataError("the file is empty", file=path)
    if kind == ".parquet":
        return _content_hash(file), _row_groups(path, block_bytes)
    with file.open("rb") as opened:
        _check_start(opened, path, kind)
        if kind in _DELIMITERS:
            return _content_hash(file), _csv_blocks(path, _DELIMITERS[kind], block_bytes)
        border = _border_of(kind, reading)
        return _line_blocks(opened, path, border, block_bytes)


def read_block(block: Block, reading: Reading) -> Iterator[Row]:
    """The rows of a block, checked as `rayloom.data.read_rows` checks them.

    Raises:
        DataError: The file is gone or shorter than it was, or broken; names file and row.
    """
    kind = kind_of(block.file)
    rows = _stored_rows(block) if kind == ".parquet" else _written_rows(block, kind, reading)
    for row in rows:
        check_unicode(row)
        yield row


def is_json_list(path: str) -> bool:
    """Whether a ``.json`` file is one list or object, which cannot be read in blocks."""
    with Path(path).open("rb") as file:
        lines = iter(lambda: file.readline(_LONGEST_ROW), b"")
        first = next((line for line in lines if line.strip()), b"")
    try:
        element = json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not isinstance(element, dict) or isinstance(element.get("data"), list)


def _written_rows(block: Block, kind: str, reading: Reading) -> Iterator[Row]:
    text = _text_of(block)
    if kind in _DELIMITERS:
        return iter(csv_rows(text, block.file, _DELIMITERS[kind], header=block.header, first=block.first))
    if kind not in TEXT_KINDS:
        return iter(jsonl_rows(text, block.file, block.first))
    column, unit = reading.text_column, reading.text_unit
    if unit == "paragraph" and block.start:
        text = text.lstrip()  # as the white space between paragraphs, which ended the block before
    if unit == "document":
        return _part_rows(text.replace("\r\n", "\n"), block, column)
    return iter(text_rows(text, block.file, column, unit, block.first))


def _text_of(block: Block) -> str:
    with Path(block.file).open("rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    if len(data) < block.stop - block.start:
        raise DataError("the file has become shorter since it was first read; start again", file=block.file)
    return data.decode("utf-8" if block.start else "utf-8-sig", errors="surrogateescape")


def _part_rows(text: str, block: Block, column: str) -> Iterator[Row]:
    line, start = block.first, 0
    while start < len(text):
        stop = _part_end(text, start)
        part = text[start:stop]
        if part.strip():
            yield SourceRow({column: part}, block.file, line)
        line += part.count("\n")
        start = stop


def _part_end(text: str, start: int) -> int:
    if len(text) - start <= PART_CHARACTERS:
        return len(text)
    place = start + PART_CHARACTERS
    found = (pattern.search(text, place, place + _WINDOW) for pattern in _BREAKS)
    return next((match.end() for match in found if match), place)


def _stored_rows(block: Block) -> Iterator[Row]:
    number = block.first
    try:
        with pq.ParquetFile(block.file) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=range(block.start, block.stop)):
                yield from table_rows(batch, block.file, number)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"broken Parquet: {error}", file=block.file) from error


def _row_groups(path: str, block_bytes: int) -> list[Block]:
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
            sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"broken Parquet: {error}", file=path) from error
    blocks: list[Block] = []
    start, num_bytes, num_rows, first = 0, 0, 0, 1
    for place, (size, rows) in enumerate(sizes, start=1):
        num_bytes, num_rows = num_bytes + size, num_rows + rows
        if num_bytes >= block_bytes or place == len(sizes):
            blocks.append(Block(path, start, place, first, num_bytes))
            start, num_bytes, first, num_rows = place, 0, first + num_rows, 0
    return blocks


def _check_start(file: BinaryIO, path: str, kind: str) -> None:
    if file.read(2) in UTF16_MARKS:
        raise DataError("the file is UTF-16; save it as UTF-8", file=path)
    if kind == ".json" and is_json_list(path):
        raise DataError(
            "a JSON list has to be read whole and cannot be streamed: save it as JSON Lines (.jsonl, one object "
            "per line), or set dataset.streaming: false",
            file=path,
        )


def _csv_blocks(path: str, delimiter: str, block_bytes: int) -> list[Block]:
    blocks: list[Block] = []
    header: tuple[str, ...] = ()
    start, first = 0, 1
    with Path(path).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = _CountedLines(file)
        for number, cells in enumerate(records(lines, path, delimiter), start=1):
            if cells and not header:
                header = checked_header(cells, path, number)
                start, first = lines.num_bytes, number + 1
            elif lines.num_bytes - start >= block_bytes:
                blocks.append(_record_block(path, start, lines.num_bytes, first, header))
                start, first = lines.num_bytes, number + 1
    if lines.num_bytes > start:
        blocks.append(_record_block(path, start, lines.num_bytes, first, header))
    return blocks


def _record_block(path: str, start: int, stop: int, first: int, header: tuple[str, ...]) -> Block:
    return Block(path, start, stop, first, stop - start, header)


class _CountedLines:
    """Lines of a text file without its byte order mark, and how many bytes have been taken."""

    def __init__(self, file: Any) -> None:
        self._file, self.num_bytes = file, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            is_first = not self.num_bytes
            self.num_bytes += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
            yield line.removeprefix("\ufeff") if is_first else line


_Border = Callable[[BinaryIO, int], int]


def _line_blocks(file: BinaryIO, path: str, border: _Border, block_bytes: int) -> tuple[str, list[Block]]:
    """Blocks between borders, with the number of the line that each starts at; and the hash of the content."""
    size = file.seek(0, 2)
    starts = [0]
    while size - starts[-1] > block_bytes and (start := border(file, starts[-1] + block_bytes)) < size:
        starts.append(start)
    digest, line = hashlib.sha256(), 1
    blocks: list[Block] = []
    for start, stop in itertools.pairwise([*starts, size]):
        blocks.append(Block(path, start, stop, line, stop - start))
        for piece in _pieces(file, start, stop):
            digest.update(piece)
            line += piece.count(b"\n")
    return digest.hexdigest(), blocks


def _pieces(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (piece := file.read(min(_PIECE, stop - start))):
        start += len(piece)
        yield piece


def _border_of(kind: str, reading: Reading) -> _Border:
    if kind not in TEXT_KINDS or reading.text_unit == "line":
        return _line_border
    return _paragraph_border if reading.text_unit == "paragraph" else _text_border


def _line_border(file: BinaryIO, position: int) -> int:
    """The first start of a line from a position on."""
    file.seek(position - 1)
    file.readline()
    return file.tell()


def _paragraph_border(file: BinaryIO, position: int) -> int:
    """The first start of a paragraph from a position on: of a line with something in it, after one without."""
    place, after_gap = _line_border(file, position), False
    for line in file:
        is_gap = not line.decode("utf-8", "surrogateescape").strip()
        if after_gap and not is_gap:
            return place
        place, after_gap = place + len(line), is_gap
    return place


def _text_border(file: BinaryIO, position: int) -> int:
    """A place to cut a document at: between paragraphs, else lines, else words, else characters."""
    file.seek(position)
    window = file.read(_WINDOW)
    found = (pattern.search(window) for pattern in _BYTE_BREAKS)
    end = next((match.end() for match in found if match), None)
    if end is None:
        end = next((place for place, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), 0)
    return position + end


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
