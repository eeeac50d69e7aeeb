from __future__ import annotations

import pytest

from rayloom.config import DatasetConfig
from rayloom.data import Columns, SourceRow, columns_for
from rayloom.errors import ConfigError, DataError


def config(**values: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"train_file": "a.jsonl", **values})


def test_defaults_by_task() -> None:
    assert columns_for(config(), "question-answering") == Columns(
        "question-answering", input="question", target="answer", context="context"
    )
    assert columns_for(config(), "summarization").required == ("document", "summary")
    assert columns_for(config(), "translation").required == ("source", "target")
    assert columns_for(config(), "instruction").context == "input"
    assert columns_for(config(text_column="body"), "language-modeling").required == ("body",)
    assert columns_for(config(), "chat").required == ("messages",)


def test_named_columns_and_a_required_context() -> None:
    columns = columns_for(config(input_column="q", target_column="a.text.0", context_column="c"), "question-answering")
    row = {"q": " x ", "a": {"text": ["one", "two"]}, "c": None}
    columns.check([row])
    assert (columns.input_text(row), columns.target_text(row), columns.context_text(row)) == (
        " x ",
        "one",
        None,
    )
    with pytest.raises(DataError, match=r"row 7, column 'c': the column is missing; present are 'q', 'a'"):
        columns.check([SourceRow({"q": "x", "a": {"text": ["y"]}}, "f.jsonl", 7)])


def test_a_default_context_may_be_absent() -> None:
    columns = columns_for(config(), "question-answering")
    columns.check([{"question": "x", "answer": 1971}])
    assert columns.target_text({"answer": 1971}) == "1971"


def test_columns_the_task_never_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset.input_column.*reads only text_column"):
        columns_for(config(input_column="x"), "language-modeling")


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "null"), (float("nan"), "null"), (True, "true/false"), (["a"], r"'answer.0'"), ({}, "an object")],
)
def test_cells_that_are_no_text(value: object, words: str) -> None:
    columns = columns_for(config(), "question-answering")
    with pytest.raises(DataError, match=words) as caught:
        columns.check([SourceRow({"question": "x", "answer": value}, "f.csv", 3)])
    assert (caught.value.file, caught.value.row, caught.value.column) == ("f.csv", 3, "answer")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "list"),
        ([], "list"),
        ([{"role": "user"}], "message 1 is no"),
        ([{"role": "bot", "content": "x"}], "'bot' is none of"),
        ([{"role": "user", "content": 3}], "not text"),
        ([{"role": "user", "content": "x"}], "no message has the role 'assistant'"),
    ],
)
def test_chat_cells(value: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        columns_for(config(), "chat").check([{"messages": value}])


def test_keys_ignore_case_width_and_spacing_but_not_the_context() -> None:
    columns = columns_for(config(), "question-answering")
    key = columns.key({"question": "Who was  ＡＤＡ?", "answer": "x"})
    assert key == columns.key({"question": " who was ada?\n", "answer": "y", "context": ""})
    assert key != columns.key({"question": "Who was Ada?", "answer": "x", "context": "c"})
    chat = columns_for(config(), "chat")
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
    second = [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "b"}]
    assert chat.key({"messages": first}) == chat.key({"messages": second})
