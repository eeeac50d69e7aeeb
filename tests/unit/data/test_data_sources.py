from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayloom.data import SourceRow, load_dataset_rows, read_rows
from rayloom.errors import ConfigError, DataError, HubError

ROWS = [{"question": "Wer?", "answer": 'Ä, "B"\nC'}, {"question": "Was?", "answer": "2"}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CSV = 'question,answer\r\nWer?,"Ä, ""B""\nC"\r\n\r\nWas?,2\r\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("lines.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("a.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"),
        ("a.ndjson", "\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS)),
        ("a.csv", CSV),
        ("bom.csv", "\ufeff" + CSV),
        ("a.TSV", CSV.replace(",", "\t").replace("Ä\t", "Ä,")),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    assert read_rows(str(write(tmp_path / name, content))) == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet"))
    assert rows == ROWS
    assert [row.number for row in rows if isinstance(row, SourceRow)] == [1, 2]


def test_plain_text_units(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.txt", "one\r\ntwo\n\n \nthree\n\n\nfour"))
    assert [row["text"] for row in read_rows(path)] == ["one\ntwo\n\n \nthree\n\n\nfour"]
    paragraphs = read_rows(path, text_unit="paragraph", text_column="body")
    assert [(row.number, row["body"]) for row in paragraphs if isinstance(row, SourceRow)] == [
        (1, "one\ntwo"),
        (5, "three"),
        (8, "four"),
    ]
    assert [row["text"] for row in read_rows(path, text_unit="line")] == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("name", "content", "row", "column", "words"),
    [
        ("a.jsonl", "", None, None, "empty"),
        ("a.csv", " \n\n", None, None, "empty"),
        ("a.csv", "question,answer\n", None, None, "no rows"),
        ("a.json", "[]", None, None, "no rows"),
        ("a.json", "[{]", None, None, "line 1"),
        ("a.json", '"text"', None, None, "list of objects"),
        ("a.json", '[{"a": 1}, 2]', 2, None, "object"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', 3, None, "broken JSON"),
        ("a.jsonl", '[\n{"a": 1}\n]', 1, None, "name the file .json"),
        ("a.csv", "a,b\n1,2\n3\n", 3, None, "1 cells where the header has 2"),
        ("a.csv", "a,b\n1,2,3\n", 2, None, "3 cells"),
        ("a.csv", 'a,b\n1,"2\n', 2, None, "broken CSV"),
        ("a.csv", "a,a\n1,2\n", 1, "a", "twice"),
        ("a.csv", "a,\n1,2\n", 1, None, "no name"),
        ("a.csv", b"a,b\n1,2\n3,caf\xe9\n", 3, "b", "byte 0xE9 is not UTF-8"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xfc"}\n', 2, "a", "0xFC"),
        ("a.jsonl", '{"a": [{"b": "\\ud800"}]}', 1, "a", "half a character"),
        ("a.txt", b"good\n\nb\xe4d", 1, "text", "line 3 of the text: byte 0xE4"),
        ("a.txt", "text".encode("utf-16"), None, None, "UTF-16"),
        ("a.parquet", "PAR?", None, None, "broken Parquet"),
        ("a.xlsx", "x", None, None, "not known"),
    ],
)
def test_errors_name_their_place(
    tmp_path: Path, name: str, content: str | bytes, row: int | None, column: str | None, words: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert (caught.value.row, caught.value.column) == (row, column)


def test_parquet_with_bytes_that_are_no_text_names_the_cell(tmp_path: Path) -> None:
    good = pa.array(["x", "y"])
    raw = pa.array([b"ok", b"\xff"], type=pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"good": good, "bad": bad}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="0xFF") as caught:
        read_rows(str(tmp_path / "a.parquet"))
    assert (caught.value.row, caught.value.column) == (2, "bad")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="folder"):
        read_rows(str(tmp_path))


def test_a_cell_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(read_rows(str(path))[0]["text"]) == 200_000


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=1, max_size=5))
def test_json_lines_keep_any_text(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(str(path)) == rows


def test_saved_datasets(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    assert load_dataset_rows(str(tmp_path / "one")) == {"train": ROWS}
    assert load_dataset_rows(str(tmp_path / "two")) == {"train": ROWS, "test": ROWS}
    (tmp_path / "three").mkdir()
    with pytest.raises(DataError, match="save_to_disk"):
        load_dataset_rows(str(tmp_path / "three"))


def test_unreachable_hub_is_told_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(HubError, match=r"neither a local folder nor in reach.*train_file"):
        load_dataset_rows("somebody/unknown", None)


@pytest.mark.parametrize("content", ['{"a": ' + "1" * 5000 + "}", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_python_refuses_to_read_is_placed(tmp_path: Path, name: str, content: str) -> None:
    text = f"[{content}]" if name == "a.json" else '{"a": 1}\n' + content
    place = "" if name == "a.json" else ".*row 2"
    with pytest.raises(DataError, match=rf"{re.escape(name)}{place}.*(too many digits|too deep)"):
        read_rows(write(tmp_path / name, text))


def test_column_names_that_differ_only_in_spaces_are_one_name_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice") as caught:
        read_rows(write(tmp_path / "a.csv", "text,text \nkept,lost\n"))
    assert caught.value.column == "text"


def test_a_saved_dataset_has_no_subsets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder") as caught:
        load_dataset_rows(str(tmp_path), "some")
    assert caught.value.key == "dataset.subset"
