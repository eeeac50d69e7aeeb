from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rayloom.artifacts import cache_root
from rayloom.config import DatasetConfig
from rayloom.data import (
    Columns,
    Encoder,
    PromptTemplate,
    SourceRow,
    columns_for,
    encode_rows,
    read_rows,
    tokenizer_fingerprint,
)
from rayloom.errors import DataError

TokenizerFactory = Callable[..., PreTrainedTokenizerFast]
DATASET = DatasetConfig(train_file="a.jsonl")
COLUMNS = columns_for(DATASET, "question-answering")
SAMPLE = Path("/work/shared/data/wordnet_context/test.jsonl")
ROWS = [
    {"question": "Who?", "answer": "Ada"},
    {"question": "", "answer": "x"},
    {"question": "When?", "answer": " "},
    {"question": "Where?", "answer": "word " * 60},
    {"question": "word " * 200, "answer": "y"},
]


def encoder_of(tokenizer: PreTrainedTokenizerFast, *, max_target_length: int = 20) -> Encoder:
    template = PromptTemplate.for_run(DATASET, "question-answering", seq2seq=False, has_chat_template=False)
    return Encoder(tokenizer, template, max_input_length=60, max_target_length=max_target_length)


class CountingEncoder(Encoder):
    num_calls = 0

    def examples(self, row, columns):  # type: ignore[no-untyped-def]
        self.num_calls += 1
        return super().examples(row, columns)


def test_examples_know_the_rows_they_were_made_of(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    # The same ids from another file come out of the cache, and yet name their own places.
    elsewhere = [SourceRow(row, "other.csv", 10 + number) for number, row in enumerate(ROWS)]
    for rows, expected in (
        (ROWS, ["train row 1", "train row 4", "train row 5"]),
        (elsewhere, ["other.csv row 10", "other.csv row 13", "other.csv row 14"]),
    ):
        dataset = encode_rows(rows, encoder_of(plain_tokenizer), COLUMNS, cache_dir=tmp_path, file_label="train")
        assert [dataset.place(index) for index in range(len(dataset))] == expected
    assert len(list((tmp_path / "tokenized").glob("*/report.json"))) == 1


def test_counts_are_reported(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = encode_rows(ROWS, encoder_of(plain_tokenizer), COLUMNS, cache_dir=tmp_path, file_label="train")
    assert len(dataset) == 3
    assert dataset.report.num_dropped == 2
    assert dataset.report.warnings == (
        "1 of 5 rows dropped: empty input",
        "1 of 5 rows dropped: nothing of the target is left",
        "1 prompts cut to max_input_length",
        "1 targets cut to the length limits",
    )
    assert dataset[0] == encoder_of(plain_tokenizer).encode(ROWS[0], COLUMNS)


def test_rows_are_tokenised_once(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    plain = encoder_of(plain_tokenizer)
    counting = CountingEncoder(plain_tokenizer, plain.template, max_input_length=60, max_target_length=20)
    first = encode_rows(ROWS, counting, COLUMNS, cache_dir=tmp_path, file_label="train")
    assert counting.num_calls == len(ROWS)
    plain_tokenizer(["x", "yy"], padding=True, truncation=True, max_length=4)  # leaves state in the tokenizer
    second = encode_rows(ROWS, counting, COLUMNS, cache_dir=tmp_path, file_label="train")
    assert counting.num_calls == len(ROWS)
    assert (second.digest, second.report, list(second)) == (first.digest, first.report, list(first))


def test_anything_that_decides_the_ids_changes_the_digest(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    def digest(encoder: Encoder, rows: list[dict[str, str]] = ROWS, columns: Columns = COLUMNS) -> str:
        return encode_rows(rows, encoder, columns, cache_dir=tmp_path, file_label="train").digest

    other = columns_for(DatasetConfig(train_file="a", context_column="answer"), "question-answering")
    digests = [
        digest(encoder_of(plain_tokenizer)),
        digest(encoder_of(plain_tokenizer, max_target_length=21)),
        digest(encoder_of(bos_tokenizer)),
        digest(encoder_of(plain_tokenizer), ROWS[::-1]),
        digest(encoder_of(plain_tokenizer), columns=other),
    ]
    assert len(set(digests)) == len(digests)


def test_a_damaged_cache_is_made_again(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = encoder_of(plain_tokenizer)
    whole = list(encode_rows(ROWS, encoder, COLUMNS, cache_dir=tmp_path, file_label="train"))
    for damage in (b"", b"junk"):
        (file,) = tmp_path.glob("tokenized/*/labels.npy")
        file.write_bytes(damage)
        again = encode_rows(ROWS, encoder, COLUMNS, cache_dir=tmp_path, file_label="train")
        assert list(again) == whole
    (file,) = tmp_path.glob("tokenized/*/report.json")
    file.unlink()
    assert list(encode_rows(ROWS, encoder, COLUMNS, cache_dir=tmp_path, file_label="train")) == whole
    assert not list(tmp_path.glob("tokenized/.building-*"))


def test_errors_name_the_row(tmp_path: Path, new_tokenizer: TokenizerFactory) -> None:
    tokenizer = new_tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    template = PromptTemplate.for_run(DATASET, "question-answering", seq2seq=False, has_chat_template=True)
    encoder = Encoder(tokenizer, template, max_input_length=60, max_target_length=20)
    row = SourceRow(dict(ROWS[0]), "own.jsonl", 9)
    for rows, file, number in (([row], "own.jsonl", 9), ([ROWS[1], ROWS[0]], "label", 2)):
        with pytest.raises(DataError, match="roles must alternate") as caught:
            encode_rows(rows, encoder, COLUMNS, cache_dir=tmp_path, file_label="label")
        assert (caught.value.file, caught.value.row) == (file, number)


def test_nothing_left_is_an_error(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = encoder_of(plain_tokenizer)
    with pytest.raises(DataError, match="no rows"):
        encode_rows([], encoder, COLUMNS, cache_dir=tmp_path, file_label="train")
    with pytest.raises(DataError, match=r"no row can be used: 1 of 1 rows dropped: empty input"):
        encode_rows(ROWS[1:2], encoder, COLUMNS, cache_dir=tmp_path, file_label="train")


def test_a_cache_that_cannot_be_written(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="RAYLOOM_CACHE"):
        encode_rows(ROWS, encoder_of(plain_tokenizer), COLUMNS, cache_dir=tmp_path / "file", file_label="x")


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path))
    assert cache_root(None) == tmp_path
    assert cache_root(tmp_path / "own") == tmp_path / "own"
    monkeypatch.delenv("RAYLOOM_CACHE")
    assert cache_root(None) == Path.home() / ".cache" / "rayloom"


def test_fingerprints(new_tokenizer: TokenizerFactory) -> None:
    assert tokenizer_fingerprint(new_tokenizer()) == tokenizer_fingerprint(new_tokenizer())
    assert len({tokenizer_fingerprint(new_tokenizer(**kind)) for kind in ({}, {"bos": True}, {"chat": True})}) == 3


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample data is not on this machine")
def test_real_rows(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = read_rows(SAMPLE)
    COLUMNS.check(rows)
    dataset = encode_rows(rows, encoder_of(plain_tokenizer), COLUMNS, cache_dir=tmp_path, file_label="test")
    assert len(dataset) == len(rows) == 500
    example = dataset[0]
    target = [label for label in example.labels if label != -100]
    assert plain_tokenizer.decode(target) == f" {rows[0]['answer']}</s>"
    assert dataset.target_counts[0] == len(target)
