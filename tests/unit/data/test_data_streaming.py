"""A streamed corpus is split as `load_splits` splits it in memory, row by row."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayloom.config import DatasetConfig, TaskType
from rayloom.data import Splits, StreamedRows, columns_for, corpus_splits, load_splits, row_keys, streaming, way_of
from rayloom.data.row_keys import RowKeys, parts
from rayloom.data.sides import SPLITS, limit_rows, shared_inputs, split_off
from rayloom.errors import DataError

few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_splits, "BLOCK_BYTES", 150)
    monkeypatch.setattr(row_keys, "SHARD_BLOCKS", 3)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def asked(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"question": f" QUESTION  {n} "[place % 2 :], "answer": str(place)} for place, n in enumerate(numbers)]


def save_dataset(folder: Path, **parts: list[int]) -> None:
    import datasets

    shutil.rmtree(folder, ignore_errors=True)
    rows = {split: datasets.Dataset.from_list(asked(numbers)) for split, numbers in parts.items()}
    datasets.DatasetDict(rows).save_to_disk(folder)


def load(
    folder: Path, task: TaskType = "question-answering", *, streamed: bool = True, **values: object
) -> Splits | str:
    dataset = DatasetConfig.model_validate(values | {"streaming": streamed, "cache_dir": str(folder / "cache")})
    try:
        return load_splits(dataset, columns_for(dataset, task))
    except DataError as error:
        return str(error)


def contents(splits: Splits | str) -> dict[str, list[tuple[Any, int]]]:
    assert isinstance(splits, Splits), splits
    return {split: [(dict(row), row.number) for row in splits.rows(split)] for split in SPLITS}  # type: ignore[attr-defined]


@few
@given(
    st.lists(st.integers(0, 60), min_size=20, max_size=120),
    st.integers(0, 3),
    st.sampled_from([{}, {"max_train_rows": 7, "max_validation_rows": 2}, {"max_test_rows": 3, "test_fraction": 0.3}]),
)
def test_the_same_rows_on_each_side(tmp_path: Path, numbers: list[int], seed: int, more: dict[str, object]) -> None:
    values = {"train_file": write_rows(tmp_path / "a.jsonl", asked(numbers)), "split_seed": seed, **more}
    streamed, in_memory = load(tmp_path, **values), load(tmp_path, streamed=False, **values)
    if isinstance(in_memory, str):
        assert isinstance(streamed, str)
        return
    assert contents(streamed) == contents(in_memory)


def test_rows_are_read_at_their_places(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", asked(list(range(200))))
    for more in ({}, {"max_train_rows": 50}):
        streamed, known = (load(tmp_path, train_file=path, streamed=way, **more) for way in (True, False))
        assert isinstance(streamed, Splits)
        assert isinstance(known, Splits)
        rows = streamed.train
        assert isinstance(rows, StreamedRows)
        assert (len(rows), rows[-1], rows[3:20:4]) == (len(known.train), known.train[-1], known.train[3:20:4])
        assert sorted(row["answer"] for row in rows.in_file_order()) == sorted(row["answer"] for row in known.train)
        assert 0 < rows.about_bytes <= (tmp_path / "a.jsonl").stat().st_size
        with pytest.raises(IndexError):
            rows[len(rows)]


def test_explicit_files_and_what_they_share(tmp_path: Path) -> None:
    rng = random.Random(0)
    values: dict[str, object] = {
        f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", asked([rng.randrange(300) for _ in range(count)]))
        for split, count in (("train", 90), ("validation", 30), ("test", 20))
    }
    for chosen in (values, {key: values[key] for key in ("train_file", "test_file")}):
        streamed, known = (load(tmp_path, streamed=way, **chosen) for way in (True, False))
        assert contents(streamed) == contents(known)
        assert isinstance(streamed, Splits)
        assert isinstance(known, Splits)
        assert streamed.warnings == known.warnings != ()


@pytest.mark.parametrize("validation", ["validation", "dev", None])
def test_datasets_by_name(tmp_path: Path, validation: str | None) -> None:
    rng = random.Random(validation)
    parts = {"train": [rng.randrange(60) for _ in range(90)], "test": [rng.randrange(60) for _ in range(20)]}
    parts |= {validation: [rng.randrange(60) for _ in range(30)]} if validation else {}
    save_dataset(tmp_path / "d", **parts)
    values: dict[str, object] = {"name": str(tmp_path / "d")}
    for more in ({}, {"max_train_rows": 20, "split_seed": 3}):
        streamed, known = (load(tmp_path, streamed=way, **values, **more) for way in (True, False))
        assert contents(streamed) == contents(known)
        assert isinstance(streamed, Splits)
        assert isinstance(known, Splits)
        assert sorted(streamed.warnings) == sorted(known.warnings) != []
    rows = streamed.train
    assert isinstance(rows, StreamedRows)
    assert len(rows.source.scan.blocks) > 5
    assert Path(rows.source.scan.file).name == "train.parquet"


def test_a_dataset_is_written_once_until_it_changes(tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/corpora/datasets/*/*.parquet")}

    values: dict[str, object] = {"name": str(tmp_path / "d")}
    save_dataset(tmp_path / "d", train=list(range(50)))
    first = load(tmp_path, **values)
    written = files()
    assert contents(load(tmp_path, **values)) == contents(first)
    assert files() == written != {}
    (path,) = written
    path.rename(path.with_suffix(".part"))  # as an interrupted run leaves it
    path.with_suffix(".part").write_bytes(b"PAR1 half")
    assert contents(load(tmp_path, **values)) == contents(first)
    save_dataset(tmp_path / "d", train=list(range(60)))
    second = load(tmp_path, **values)
    assert isinstance(second, Splits)
    assert len(files()) == 2
    assert sum(len(second.rows(split)) for split in SPLITS) == 60


def test_a_dataset_that_cannot_be_streamed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.DatasetDict({"other": datasets.Dataset.from_list(asked([1]))}).save_to_disk(tmp_path / "e")
    assert "no split 'train'; there are: other" in str(load(tmp_path, name=str(tmp_path / "e")))
    save_dataset(tmp_path / "d", train=list(range(50)))
    (tmp_path / "file").touch()
    dataset = DatasetConfig(name=str(tmp_path / "d"), streaming=True, cache_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"set dataset\.cache_dir"):
        load_splits(dataset, columns_for(dataset, "question-answering"))
    asks = DatasetConfig(name=str(tmp_path / "d"))
    assert not way_of(asks).streamed
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 100)
    assert way_of(asks).streamed


@pytest.mark.parametrize("task", ["language-modeling", "chat", "instruction"])
def test_other_tasks(tmp_path: Path, task: TaskType) -> None:
    if task == "language-modeling":
        path = tmp_path / "a.txt"
        path.write_text("\n\n".join(f"A paragraph, number {number % 37}.\nIts end." for number in range(80)))
        values: dict[str, object] = {"train_file": str(path), "text_unit": "paragraph"}
    elif task == "chat":
        turns = [[{"role": role, "content": f"{n} {role}"} for role in ("user", "assistant")] for n in range(50)]
        values = {"train_file": write_rows(tmp_path / "a.jsonl", [{"messages": each} for each in turns])}
    else:
        rows = [{"instruction": f"Do {n % 30}", "input": str(n % 2), "output": "x"} for n in range(70)]
        values = {"train_file": write_rows(tmp_path / "a.jsonl", rows)}
    assert contents(load(tmp_path, task, **values)) == contents(load(tmp_path, task, streamed=False, **values))


def test_a_bad_cell_is_found_where_it_stands(tmp_path: Path) -> None:
    rows = [*asked(list(range(30))), {"question": "x", "answer": None}, *asked(list(range(5)))]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert load(tmp_path, train_file=path) == load(tmp_path, train_file=path, streamed=False)
    assert "a.jsonl, row 31, column 'answer'" in str(load(tmp_path, train_file=path))


def test_few_inputs(tmp_path: Path) -> None:
    same = write_rows(tmp_path / "a.jsonl", asked([1] * 30))
    assert "30 rows with 1 different inputs cannot be split" in str(load(tmp_path, train_file=same))
    big = write_rows(tmp_path / "b.jsonl", asked([n for n in range(3) for _ in range(40)]))
    assert "too many rows share one input" in str(load(tmp_path, train_file=big))
    (tmp_path / "c.txt").write_text("One document. " * 100)
    told = str(load(tmp_path, "language-modeling", train_file=str(tmp_path / "c.txt")))
    assert "text_unit" in told


def test_a_split_is_made_once_and_a_damaged_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", asked([n % 70 for n in range(200)]))
    first = contents(load(tmp_path, train_file=path, max_train_rows=20))
    (sides,) = tmp_path.glob("cache/corpora/splits/*/train-sides.npy")
    damaged = bytearray(sides.read_bytes())
    damaged[-1] ^= 1
    sides.write_bytes(damaged)
    for keys in tmp_path.glob("cache/corpora/keys/*/keys-00001.npy"):
        keys.write_bytes(keys.read_bytes()[:-1])
    assert contents(load(tmp_path, train_file=path, max_train_rows=20)) == first

    def no_reading(*_: object) -> None:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(row_keys, "read_block", no_reading)
    again = load(tmp_path, train_file=path, max_train_rows=20)
    assert isinstance(again, Splits)
    assert len(again.train) == 20


def keys_of(folder: Path, name: str, values: list[int]) -> RowKeys:
    cut = [values[start : start + 7] for start in range(0, len(values), 7)]
    files = [folder / f"{name}-{number}.npy" for number in range(len(cut))]
    for file, part in zip(files, cut, strict=True):
        np.save(file, np.array([value * (2**64 // 50) for value in part], dtype=np.uint64))
    return RowKeys(tuple(files), tuple(len(part) for part in cut))


@few
@given(st.lists(st.integers(0, 49), min_size=5, max_size=80), st.integers(1, 100))
def test_a_part_of_the_keys_in_memory_is_enough(tmp_path: Path, values: list[int], part_rows: int) -> None:
    keys, shares = keys_of(tmp_path, "a", values), {"test": 0.2, "validation": 0.15}

    def sides(part_rows: int) -> list[int] | str:
        found = np.zeros(len(values), np.uint8)
        try:
            split_off(keys, shares, found, file="a", part_rows=part_rows)
        except DataError as error:
            return str(error)
        return found.tolist()

    assert sides(part_rows) == sides(1 << 20)
    other = keys_of(tmp_path, "b", values[: len(values) // 2] + [3, 4])
    assert shared_inputs(keys, other, part_rows=part_rows) == sum(
        value in values for value in [*values[: len(values) // 2], 3, 4]
    )
    bounds = list(parts(len(values), part_rows=part_rows))
    assert (bounds[0][0], bounds[-1][1]) == (0, 2**64 - 1)
    assert all(one[1] + 1 == two[0] for one, two in zip(bounds, bounds[1:], strict=False))


def test_limits_as_in_memory() -> None:
    sides = np.array([0, 1, 2, 0, 0, 1], np.uint8)
    assert limit_rows(sides, "train", 3, 0) is None
    assert limit_rows(sides, "train", None, 0) is None
    order = limit_rows(sides, "train", 2, 0)
    assert order is not None
    assert order.tolist() == [[0, 3, 4][place] for place in np.random.default_rng([0, 0]).permutation(3)[:2]]
    assert (sides == 0).sum() == 2


def test_the_way_is_chosen_by_size_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", asked(list(range(50))))
    small = way_of(DatasetConfig(train_file=path))
    assert (small.streamed, small.reason[:5]) == (False, "whole")
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 1000)
    big = way_of(DatasetConfig(train_file=path))
    assert big.streamed
    assert "MiB of files, more than" in big.reason
    assert not way_of(DatasetConfig(train_file=path, streaming=False)).streamed
    (tmp_path / "b.json").write_text(json.dumps(asked(list(range(50)))))
    as_list = way_of(DatasetConfig(train_file=str(tmp_path / "b.json")))
    assert not as_list.streamed
    assert "JSON Lines" in as_list.reason


def test_keys_that_two_runs_make_at_once_disturb_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lock is a split's own, and runs with other limits share the keys.
    file = write_rows(tmp_path / "a.jsonl", asked(list(range(40))))
    dataset = DatasetConfig(train_file=file, streaming=True, cache_dir=str(tmp_path / "cache"))
    columns, really_save = columns_for(dataset, "question-answering"), np.save
    others: list[Splits | None] = []

    def save(path: Any, values: Any) -> None:
        really_save(path, values)
        if not others:
            others.append(None)  # the other run saves as well
            others[0] = load_splits(dataset.model_copy(update={"max_train_rows": 5}), columns)

    monkeypatch.setattr(np, "save", save)
    splits = load_splits(dataset, columns)
    assert others[0] is not None
    assert (len(splits.train), len(others[0].train)) == (32, 5)
