"""Files read in blocks give the rows that they give when they are read whole, wherever the blocks end."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayloom.data import SourceRow, blocks, read_rows
from rayloom.data.blocks import Block, Reading, cut_file, read_block
from rayloom.data.scanning import scan_file
from rayloom.errors import DataError

# What parts lines, cells or words for some reader or other, and letters of one to four bytes.
LETTERS = "ab, \"'\t\r\n\n\n\x0b\x0c\x1c\x85\u2028éß漢🙂"
texts = st.text(LETTERS, max_size=120)
whole_texts = st.lists(texts, min_size=1, max_size=5).map("".join)
block_sizes = st.integers(1, 90)
quick = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_blocks(path: Path, block_bytes: int, reading: Reading = Reading()) -> list[tuple[Any, ...]]:  # noqa: B008
    _, cut = cut_file(str(path), reading, block_bytes=block_bytes)
    return placed([row for block in cut for row in read_block(block, reading)])


def placed(rows: list[Any]) -> list[tuple[Any, ...]]:
    assert all(isinstance(row, SourceRow) for row in rows)
    return [(dict(row), row.file, row.number) for row in rows]


def whole(path: Path, **reading: str) -> list[tuple[Any, ...]]:
    return placed(read_rows(str(path), **reading))


@quick
@given(whole_texts, block_sizes, st.sampled_from(["line", "paragraph"]), st.booleans())
def test_plain_text(tmp_path: Path, text: str, size: int, unit: str, has_mark: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("utf-8-sig" if has_mark else "utf-8"))
    if not text.strip():
        return
    assert in_blocks(path, size, Reading("body", unit)) == whole(path, text_column="body", text_unit=unit)


@quick
@given(st.lists(st.tuples(texts, st.integers(0, 3)), min_size=1, max_size=8), block_sizes, st.booleans())
def test_json_lines(tmp_path: Path, rows: list[tuple[str, int]], size: int, is_ascii: bool) -> None:
    lines = [json.dumps({"q": text, "n": len(text)}, ensure_ascii=is_ascii) + "\n" * (1 + gap) for text, gap in rows]
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text("".join(lines), encoding="utf-8", newline="")
        if name == "a.jsonl" or len(rows) > 1:
            assert in_blocks(tmp_path / name, size) == whole(tmp_path / name)


@quick
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8), block_sizes, st.sampled_from(["\n", "\r\n"]))
def test_comma_and_tab_separated_values(tmp_path: Path, rows: list[tuple[str, str]], size: int, end: str) -> None:
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        path = tmp_path / name
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            quoting = csv.QUOTE_ALL if any("\r" in cell for row in rows for cell in row) else csv.QUOTE_MINIMAL
            csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([("q", "a"), *rows])
        assert in_blocks(path, size) == whole(path)
        assert [(row["q"], row["a"]) for row, _, _ in in_blocks(path, size)] == rows


@pytest.mark.parametrize("per_group", [1, 7, 1000])
def test_parquet(tmp_path: Path, per_group: int) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"q": f"row {number}", "tags": ["x"] * (number % 3)} for number in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=per_group)
    for size in (1, 2000, 1 << 20):
        assert in_blocks(path, size) == whole(path)


def test_a_document_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    document = Reading()
    text = "".join(f"Zeile {number} ist 漢字.\n" + "\n" * (number % 4 == 0) for number in range(400))
    path.write_text(text, encoding="utf-8")
    assert in_blocks(path, 1 << 20, document) == whole(path)
    monkeypatch.setattr(blocks, "PART_CHARACTERS", 300)
    for size in (500, 3000):
        parts = in_blocks(path, size, document)
        assert "".join(row["text"] for row, _, _ in parts) == text
        assert max(len(row["text"]) for row, _, _ in parts) < 500
        lines = text.split("\n")
        assert all(row["text"].split("\n")[0] == lines[number - 1] for row, _, number in parts)
    path.write_text("wort " * 200 + "漢" * 2000, encoding="utf-8")
    monkeypatch.setattr(blocks, "_WINDOW", 50)
    assert "".join(row["text"] for row, _, _ in in_blocks(path, 500, document)) == path.read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"q": "a"}\n\n{"q": "b"}\n{"q": \n{"q": "d"}\n'),
        ("a.jsonl", b'{"q": "a"}\n[1]\n'),
        ("a.jsonl", b'{"q": "a"}\n{"q": "\xff"}\n'),
        ("a.csv", b"q,a\n1,2\n3,4,5\n"),
        ("a.csv", b'q,a\n1,2\n"3,4\n'),
        ("a.csv", b"q,q\n1,2\n"),
        ("a.txt", b"one\n\ntwo \xff\n"),
        ("a.jsonl", b"\xff\xfe{"),
        ("a.xml", b"<a/>"),
    ],
)
def test_errors_are_those_of_whole_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    errors = []
    for read in (lambda: whole(path, text_unit="line"), lambda: in_blocks(path, 5, Reading(text_unit="line"))):
        with pytest.raises(DataError) as caught:
            read()
        errors.append((str(caught.value), caught.value.row))
    assert errors[0] == errors[1]


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    for content in ('[{"q": 1}]', '[\n{"q": 1}\n]', '{"data": [{"q": 1}]}', '{\n"data": []}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match="JSON Lines"):
            cut_file(str(tmp_path / "a.json"), Reading())
    for name, content, told in (("b.jsonl", "", "empty"), ("b.parquet", "junk", "broken Parquet")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=told):
            cut_file(str(tmp_path / name), Reading())


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    with pytest.raises(DataError, match="shorter"):
        list(read_block(Block(str(path), 0, 100, 1, 100), Reading()))


def test_a_scan_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\n1,2\n3,4\n")
    os.utime(path, (1e9, 1e9))

    def scan(block_bytes: int = 3):  # type: ignore[no-untyped-def]
        return scan_file(str(path), Reading(), memory=tmp_path / "memory", block_bytes=block_bytes)

    first = scan()
    (kept,) = (tmp_path / "memory").iterdir()
    assert scan() == first
    kept.write_text(kept.read_text().replace(first.sha256, "remembered"))
    assert scan().sha256 == "remembered"
    assert scan(block_bytes=100).sha256 == first.sha256
    path.write_text("q,a\n1,2\n3,5\n")
    os.utime(path, (1e9, 1e9 + 1))
    assert scan().sha256 not in (first.sha256, "remembered")
    kept.write_text("{")
    os.utime(path, (1e9, 1e9))
    assert len(scan().sha256) == 64


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_reading_holds_a_block_at_a_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    words = "word " * 40
    line = {"a.jsonl": json.dumps({"q": words}), "a.txt": words + "\n", "a.csv": words + ",x"}[name]
    path.write_text(("q,a\n" if name == "a.csv" else "") + (line + "\n") * 20_000)
    assert path.stat().st_size > 4_000_000
    tracemalloc.start()
    try:
        _, cut = cut_file(str(path), Reading(text_unit="paragraph"), block_bytes=1 << 16)
        count = sum(1 for block in cut for _ in read_block(block, Reading(text_unit="paragraph")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_500_000  # a megabyte of it is the buffer that files are hashed through
