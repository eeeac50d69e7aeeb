"""What a run does differently with a streamed corpus, before any worker starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayloom.config import DatasetConfig, EvaluateJob
from rayloom.data import Splits, columns_for, load_splits
from rayloom.errors import ConfigError
from rayloom.evaluation import jobs
from rayloom.launch import encoded
from tests.fakes import random_examples


@pytest.fixture
def splits(tmp_path: Path) -> dict[bool, Splits]:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"Question {n}?", "answer": str(n)}) for n in range(100)))
    found = {}
    for streamed in (True, False):
        dataset = DatasetConfig(train_file=str(path), cache_dir=str(tmp_path / "cache"), streaming=streamed)
        found[streamed] = load_splits(dataset, columns_for(dataset, "question-answering"))
    return found


def test_a_tokenizer_is_trained_on_the_beginning(splits: dict[bool, Splits], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [dict(row) for row in splits[False].train]
    assert [dict(row) for row in encoded.tokenizer_rows(splits[True])] == whole
    monkeypatch.setattr(encoded, "_TOKENIZER_CHARACTERS", 100)
    assert [dict(row) for row in encoded.tokenizer_rows(splits[True])] == whole[:8]
    assert [dict(row) for row in encoded.tokenizer_rows(splits[False])] == whole


def test_a_slow_validation_is_said(splits: dict[bool, Splits], monkeypatch: pytest.MonkeyPatch) -> None:
    validation = random_examples(10, seq2seq=False)
    assert encoded.slow_validation(splits[True], validation) == []
    monkeypatch.setattr(encoded, "_MANY_TOKENS", 5)
    (told,) = encoded.slow_validation(splits[True], validation)
    assert "max_validation_rows" in told
    assert encoded.slow_validation(splits[False], validation) == []


def test_a_big_test_split_is_not_evaluated_by_accident(
    splits: dict[bool, Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EvaluateJob(artifact="x", splits=["test"])
    limited = EvaluateJob.model_validate({"artifact": "x", "splits": ["test"], "evaluation": {"max_rows": 5}})
    monkeypatch.setattr(jobs, "_MOST_STREAMED_BYTES", 100)
    for streamed, each in splits.items():
        rows = {"test": each.rows("test")}
        jobs._check_amount(each, rows, limited)
        if streamed:
            with pytest.raises(ConfigError, match="evaluation.max_rows: split 'test' has 10 rows"):
                jobs._check_amount(each, rows, job)
        else:
            jobs._check_amount(each, rows, job)
