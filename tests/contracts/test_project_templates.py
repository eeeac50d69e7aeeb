"""The projects that `rayloom init` writes go through the real data room without a complaint."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from rayloom.cli.init import write_project
from rayloom.config import TaskType, load_run_config
from rayloom.data import PromptTemplate, columns_for, load_splits


@pytest.mark.parametrize("task", typing.get_args(TaskType))
def test_sample_rows_become_prompts(task: TaskType, tmp_path: Path) -> None:
    write_project(tmp_path / "p", model="some-llama", task=task)
    config = load_run_config(tmp_path / "p/config.yaml")
    columns = columns_for(config.dataset, task)
    splits = load_splits(config.dataset, columns)
    assert splits.warnings == ()
    template = PromptTemplate.for_run(config.dataset, task, seq2seq=False, has_chat_template=task == "chat")
    for rows in (splits.train, splits.validation, splits.test):
        assert rows
        for row in rows:
            question = template.input_of(row, columns)
            assert question.text or question.messages
            assert task == "language-modeling" or template.target_of(row, columns)
            assert (question.context is not None) == (task == "question-answering")
