from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.config import DatasetConfig
from rayloom.data import Splits, columns_for, load_splits
from rayloom.data.splits import _split_off
from rayloom.errors import DataError


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"Question {number}?", "answer": str(number)} for number in range(start, start + count)]


def load(**values: object) -> Splits:
    dataset = DatasetConfig.model_validate(values)
    return load_splits(dataset, columns_for(dataset, "question-answering"))


def test_eighty_ten_ten_and_seeded(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered(100))
    splits = load(train_file=path)
    assert [len(splits.rows(name)) for name in ("train", "validation", "test")] == [80, 10, 10]
    everything = [*splits.train, *splits.validation, *splits.test]
    assert sorted(row["answer"] for row in everything) == sorted(str(number) for number in range(100))
    assert load(train_file=path) == splits
    other = load(train_file=path, split_seed=1)
    assert other.test != splits.test
    assert other.digest != splits.digest
    assert splits.warnings == ()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=200), st.integers(0, 5))
def test_equal_inputs_stay_together(numbers: list[int], seed: int) -> None:
    rows = [{"question": f" QUESTION  {n} "[place % 2 :], "answer": str(place)} for place, n in enumerate(numbers)]
    columns = columns_for(DatasetConfig(train_file="x"), "question-answering")
    try:
        sides = _split_off(list(rows), columns, {"test": 0.2, "validation": 0.2}, seed)
    except DataError:
        assert len(set(numbers)) < 5 or max(numbers.count(n) for n in numbers) > len(numbers) * 0.2
        return
    keys = {side: {columns.key(row) for row in part} for side, part in sides.items()}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    assert sum(len(part) for part in sides.values()) == len(rows)
    assert all(sides.values())


def test_missing_splits_come_from_train_only(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", numbered(50))
    test = write_rows(tmp_path / "test.jsonl", numbered(7, start=100))
    splits = load(train_file=train, test_file=test)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [45, 5, 7]


def test_overlap_of_explicit_files_is_counted(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", numbered(10))
    validation = write_rows(tmp_path / "validation.jsonl", numbered(5, start=20))
    test = write_rows(tmp_path / "test.jsonl", [{"question": "question  3?", "answer": "x"}, *numbered(3, start=30)])
    splits = load(train_file=train, validation_file=validation, test_file=test)
    assert splits.warnings == ("1 of 4 test rows have an input that is in train as well",)
    assert len(splits.test) == 4


def test_limits_take_a_seeded_sample(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered(100))
    whole, some = load(train_file=path), load(train_file=path, max_train_rows=5, max_test_rows=2)
    assert len(some.train) == 5
    assert len(some.test) == 2
    assert some.validation == whole.validation
    assert all(row in whole.train for row in some.train)
    assert some.train != whole.train[:5]
    assert some == load(train_file=path, max_train_rows=5, max_test_rows=2)


def test_too_few_rows_and_one_input_for_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows with 2 different inputs cannot be split"):
        load(train_file=write_rows(tmp_path / "a.jsonl", numbered(2)))
    big = [{"question": f"q{n}", "answer": str(place)} for n in range(3) for place in range(40)]
    with pytest.raises(DataError, match="too many rows share one input"):
        load(train_file=write_rows(tmp_path / "b.jsonl", big))


def test_a_bad_cell_is_found_where_it_stands(tmp_path: Path) -> None:
    rows = [*numbered(5), {"question": "x", "answer": None}, *numbered(5, start=10)]
    with pytest.raises(DataError) as caught:
        load(train_file=write_rows(tmp_path / "a.jsonl", rows))
    assert (caught.value.row, caught.value.column) == (6, "answer")


@pytest.mark.parametrize("gap", ["\n\n", "\n", " "])
def test_a_single_text_is_cut_by_position(tmp_path: Path, gap: str) -> None:
    text = gap.join(f"Sentence number {number}." for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    dataset = DatasetConfig(train_file=str(tmp_path / "a.txt"))
    splits = load_splits(dataset, columns_for(dataset, "language-modeling"))
    parts = [splits.rows(name)[0]["text"] for name in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 1) for part in parts] == [0.8, 0.1, 0.1]


def test_a_text_too_short_to_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    dataset = DatasetConfig(train_file=str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="too short"):
        load_splits(dataset, columns_for(dataset, "language-modeling"))


def test_saved_dataset_with_other_split_names(tmp_path: Path) -> None:
    import datasets

    parts = {"train": numbered(20), "dev": numbered(3, start=30)}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(tmp_path / "d")
    splits = load(name=str(tmp_path / "d"))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [18, 3, 2]
    datasets.DatasetDict({"other": datasets.Dataset.from_list(numbered(3))}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="no split 'train'; there are: other"):
        load(name=str(tmp_path / "e"))
