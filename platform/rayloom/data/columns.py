"""Which column of a row is what, and the reading of one cell."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayloom.config import DatasetConfig, TaskType
from rayloom.data.rows import Row, row_error
from rayloom.errors import ConfigError

_DEFAULTS: dict[TaskType, tuple[str, str, str | None]] = {
    "question-answering": ("question", "answer", "context"),
    "summarization": ("document", "summary", None),
    "translation": ("source", "target", None),
    "instruction": ("instruction", "output", "input"),
}
_ROLES = ("system", "user", "assistant")
_ABSENT = object()


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads. Names may be dotted paths into nested cells (``answers.text.0``).

    Args:
        task: The task.
        input: Question, document, source sentence or instruction; unused by language modelling and chat.
        target: Answer, summary, translation or response; unused by language modelling and chat.
        context: Context of the input. Rows without one are fine unless ``context_required``.
        text: Language modelling: the text.
        messages: Chat: the list of ``{role, content}``.
        context_required: The context column was asked for by name, so every row must have it.
    """

    task: TaskType
    input: str = ""
    target: str = ""
    context: str | None = None
    text: str = "text"
    messages: str = "messages"
    context_required: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        if self.task == "language-modeling":
            return (self.text,)
        if self.task == "chat":
            return (self.messages,)
        context = (self.context,) if self.context and self.context_required else ()
        return (self.input, self.target, *context)

    def input_text(self, row: Row) -> str:
        """The input cell (language modelling: the text)."""
        return read_text(row, self.text if self.task == "language-modeling" else self.input)

    def target_text(self, row: Row) -> str:
        """The target cell."""
        return read_text(row, self.target)

    def context_text(self, row: Row) -> str | None:
        """The context cell; None where the row has none or an empty one."""
        if not self.context:
            return None
        value = lookup(row, self.context)
        if value is _ABSENT or value is None:
            return None
        return read_text(row, self.context) or None

    def conversation(self, row: Row) -> list[dict[str, str]]:
        """The chat messages, checked: known roles, text contents, at least one assistant turn."""
        return read_messages(row, self.messages)

    def check(self, rows: Sequence[Row]) -> None:
        """Read every cell that the task needs, once.

        Raises:
            DataError: Names file, row and column of the first cell that is absent, empty (null) or no text.
        """
        for row in rows:
            if self.task == "chat":
                self.conversation(row)
                continue
            for column in self.required:
                if column != self.context:
                    read_text(row, column)
                elif lookup(row, column) is _ABSENT:
                    raise _missing(row, column)
            self.context_text(row)

    def key(self, row: Row) -> str:
        """Hash of the normalised input and context: rows with equal keys ask the model the same thing."""
        if self.task == "chat":
            parts: list[str] = []
            for message in self.conversation(row):
                if message["role"] == "assistant":
                    break
                parts.append(f"{message['role']}: {message['content']}")
        else:
            parts = [self.input_text(row), self.context_text(row) or ""]
        joined = "\x1f".join(normalise(part) for part in parts)
        return hashlib.sha256(joined.encode()).hexdigest()


def columns_for(dataset: DatasetConfig, task: TaskType) -> Columns:
    """The columns of a dataset for a task: the config's names, else the task's own.

    Raises:
        ConfigError: A column is named that the task never reads.
    """
    if task in ("language-modeling", "chat"):
        for field in ("input_column", "target_column", "context_column"):
            if getattr(dataset, field) is not None:
                used = "text_column" if task == "language-modeling" else "messages_column"
                raise ConfigError(f"task_type '{task}' reads only {used}", key=f"dataset.{field}")
        return Columns(task, text=dataset.text_column, messages=dataset.messages_column)
    default_input, default_target, default_context = _DEFAULTS[task]
    return Columns(
        task,
        input=dataset.input_column or default_input,
        target=dataset.target_column or default_target,
        context=dataset.context_column or default_context,
        context_required=dataset.context_column is not None,
    )


def normalise(text: str) -> str:
    """Text as inputs are compared: NFKC, lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def lookup(row: Row, column: str) -> Any:
    """A cell by its name or by a dotted path (``translation.de``, ``answers.text.0``)."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
    return value


def read_text(row: Row, column: str) -> str:
    """A cell as text; numbers are written out.

    Raises:
        DataError: The cell is absent, null, not a number or not text.
    """
    value = lookup(row, column)
    if isinstance(value, str):
        return value
    if value is _ABSENT:
        raise _missing(row, column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise row_error("the value is null; fill it in or remove the row", row, column=column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    hint = f"; name one element, such as '{column}.0'" if isinstance(value, list | dict) else ""
    raise row_error(f"text is wanted, this is {_kind(value)}{hint}", row, column=column)


def read_messages(row: Row, column: str) -> list[dict[str, str]]:
    """A chat cell, checked.

    Raises:
        DataError: The cell is no list of ``{role, content}``, or has no assistant turn.
    """
    value = lookup(row, column)
    if value is _ABSENT:
        raise _missing(row, column)
    if not isinstance(value, list) or not value:
        raise row_error(f"a list of {{role, content}} is wanted, this is {_kind(value)}", row, column=column)
    messages = [_message(row, column, place, message) for place, message in enumerate(value, start=1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise row_error("no message has the role 'assistant': there is nothing to learn", row, column=column)
    return messages


def _message(row: Row, column: str, place: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise row_error(f"message {place} is no {{role, content}}", row, column=column)
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise row_error(f"message {place}: role {role!r} is none of {', '.join(_ROLES)}", row, column=column)
    if not isinstance(content, str):
        raise row_error(f"message {place}: content is {_kind(content)}, not text", row, column=column)
    return {"role": role, "content": content}


def _missing(row: Row, column: str) -> Exception:
    present = ", ".join(f"'{name}'" for name in row) or "none"
    return row_error(
        f"the column is missing; present are {present} (dataset.*_column maps other names)",
        row,
        column=column,
    )


def _kind(value: object) -> str:
    names = {bool: "true/false", list: "a list", dict: "an object", type(None): "null", str: "text"}
    return names.get(type(value), type(value).__name__)
