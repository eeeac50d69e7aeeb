"""Prompt templates: how a row, or a caller's question, becomes the text that the model sees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict

from rayloom.config import DatasetConfig, TaskType
from rayloom.data.columns import Columns
from rayloom.data.rows import Row
from rayloom.errors import ConfigError, ModelError

Message = dict[str, str]

_FIELD = re.compile(r"\{(input|context)\}")


@dataclass(frozen=True)
class PromptInput:
    """What a caller, or a row, asks.

    Args:
        text: Question, document, sentence or instruction; language modelling: the raw prompt.
        context: Context of the input, where there is one.
        messages: A conversation instead of text (chat template needed).
        prefix: Text that the answer is forced to start with; no part of the prompt.
    """

    text: str = ""
    context: str | None = None
    messages: tuple[Message, ...] | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class _Wording:
    """One task's wording for one kind of model; ``target_prefix`` parts prompt and target."""

    prompt: str
    context_prompt: str | None = None
    target_prefix: str = ""


# Raffel et al. (2020), appendix D: the prefixes that T5 was trained with.
_SEQ2SEQ: dict[TaskType, _Wording] = {
    "question-answering": _Wording("question: {input}", "question: {input} context: {context}"),
    "summarization": _Wording("summarize: {input}"),
    "translation": _Wording("translate {source_language} to {target_language}: {input}"),
    "instruction": _Wording("{input}", "{input}\n\n{context}"),
}
_PLAIN: dict[TaskType, _Wording] = {
    "question-answering": _Wording("Question: {input}\nAnswer:", "Context: {context}\nQuestion: {input}\nAnswer:", " "),
    "summarization": _Wording("Document: {input}\nSummary:", None, " "),
    "translation": _Wording("{source_language}: {input}\n{target_language}:", None, " "),
    # Taori et al. (2023), Stanford Alpaca.
    "instruction": _Wording(
        "### Instruction:\n{input}\n\n### Response:\n",
        "### Instruction:\n{input}\n\n### Input:\n{context}\n\n### Response:\n",
    ),
    "language-modeling": _Wording("{input}"),
}
_CHAT: dict[TaskType, _Wording] = {
    "question-answering": _Wording("{input}", "Context: {context}\n\nQuestion: {input}"),
    "summarization": _Wording("Summarize the following text.\n\n{input}"),
    "translation": _Wording("Translate from {source_language} to {target_language}.\n\n{input}"),
    "instruction": _Wording("{input}", "{input}\n\n{context}"),
    "chat": _Wording("{input}", "{context}\n\n{input}"),
}


class PromptTemplate(BaseModel):
    """A task's prompt for one kind of model. It travels with the artifact as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    task: TaskType
    """The task."""
    seq2seq: bool
    """The prompt goes into an encoder, and the target starts afresh."""
    chat: bool = False
    """The prompt is a user message, rendered by the tokenizer's chat template."""
    prompt: str = "{input}"
    """Prompt with ``{input}``."""
    context_prompt: str | None = None
    """Prompt with ``{input}`` and ``{context}``; None where the task has no place for a context."""
    target_prefix: str = ""
    """Text between prompt and target of causal models; the model is trained to write it."""
    system: str | None = None
    """System message put before conversations that have none."""

    @classmethod
    def for_run(cls, dataset: DatasetConfig, task: TaskType, *, seq2seq: bool, has_chat_template: bool) -> Self:
        """The template of a run.

        Args:
            dataset: Own wording, system prompt, languages.
            task: The task.
            seq2seq: The model is an encoder-decoder.
            has_chat_template: The tokenizer has a chat template.

        Raises:
            ConfigError: Contradictory or missing keys.
            ModelError: The task needs a chat template that the model does not have.
        """
        chat = _wants_chat(dataset, task, seq2seq=seq2seq, has_chat_template=has_chat_template)
        wording = _wording(dataset, task, seq2seq=seq2seq, chat=chat)
        if dataset.system_prompt is not None and not chat:
            raise ConfigError(
                "a system message needs a chat template, which is not used here; put it into prompt_template",
                key="dataset.system_prompt",
            )
        if dataset.context_column is not None and wording.context_prompt is None:
            raise ConfigError(
                f"the prompt of '{task}' has no place for it; give a prompt_template with {{context}}",
                key="dataset.context_column",
            )
        return cls(
            task=task,
            seq2seq=seq2seq,
            chat=chat,
            prompt=wording.prompt,
            context_prompt=wording.context_prompt,
            target_prefix=wording.target_prefix,
            system=dataset.system_prompt,
        )

    def render(self, text: str, context: str | None = None) -> str:
        """The prompt's text, before any chat template. Braces in text and context are left alone."""
        values = {"input": text, "context": context or ""}
        wording = self.prompt if context is None or self.context_prompt is None else self.context_prompt
        return _FIELD.sub(lambda match: values[match[1]], wording)

    def conversation(self, text: str, context: str | None = None) -> list[Message]:
        """The messages of a prompt for models with a chat template."""
        return self.with_system([{"role": "user", "content": self.render(text, context)}])

    def with_system(self, messages: list[Message]) -> list[Message]:
        """The messages with the template's system message in front, unless they bring their own."""
        if self.system is None or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def input_of(self, row: Row, columns: Columns) -> PromptInput:
        """What a row asks. Chat: everything before the last assistant turn."""
        if self.task == "chat":
            messages = columns.conversation(row)
            return PromptInput(messages=tuple(messages[: _last_answer(messages)]))
        context = columns.context_text(row) if self.context_prompt else None
        return PromptInput(text=columns.input_text(row), context=context)

    def target_of(self, row: Row, columns: Columns) -> str:
        """What a row answers. Chat: the last assistant turn. Language modelling: nothing."""
        if self.task == "chat":
            messages = columns.conversation(row)
            return messages[_last_answer(messages)]["content"]
        return "" if self.task == "language-modeling" else columns.target_text(row)


def _last_answer(messages: list[Message]) -> int:
    return max(place for place, message in enumerate(messages) if message["role"] == "assistant")


def _wants_chat(dataset: DatasetConfig, task: TaskType, *, seq2seq: bool, has_chat_template: bool) -> bool:
    asked = dataset.use_chat_template
    if task == "language-modeling" or seq2seq:
        if asked:
            what = "a seq2seq model" if seq2seq else "language modelling"
            raise ConfigError(f"{what} takes plain text, no chat template", key="dataset.use_chat_template")
        if task == "chat":
            raise ConfigError("task_type 'chat' needs a causal model, not a seq2seq one", key="model.task_type")
        return False
    if task == "chat" and asked is False:
        raise ConfigError("task_type 'chat' needs the chat template", key="dataset.use_chat_template")
    if (asked or task == "chat") and not has_chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template; take an instruction-tuned model (…-Instruct), "
            "or task_type 'instruction' with use_chat_template: false"
        )
    return has_chat_template if asked is None else asked


def _wording(dataset: DatasetConfig, task: TaskType, *, seq2seq: bool, chat: bool) -> _Wording:
    table = _CHAT if chat else _SEQ2SEQ if seq2seq else _PLAIN
    if task not in table:
        raise ConfigError(f"task_type '{task}' does not go with a seq2seq model", key="model.task_type")
    wording = table[task]
    own = dataset.prompt_template
    if own is not None:
        if task in ("language-modeling", "chat"):
            raise ConfigError(f"task_type '{task}' takes the text as it is", key="dataset.prompt_template")
        ends_apart = chat or seq2seq or own[-1:].isspace()
        has_context = "{context}" in own
        return _Wording(own, own if has_context else None, "" if ends_apart else " ")
    languages = {
        "{source_language}": dataset.source_language,
        "{target_language}": dataset.target_language,
    }
    prompt = wording.prompt
    for field, language in languages.items():
        if field in prompt and not language:
            raise ConfigError(
                "translation needs source_language and target_language for its prompt (or a prompt_template)",
                key=f"dataset.{field.strip('{}')}",
            )
        prompt = prompt.replace(field, language or "")
    return _Wording(prompt, wording.context_prompt, wording.target_prefix)
