from __future__ import annotations

import pytest

from rayloom.config import DatasetConfig, TaskType
from rayloom.data import PromptInput, PromptTemplate, columns_for
from rayloom.errors import ConfigError, ModelError


def template(
    task: TaskType = "question-answering", *, seq2seq: bool = False, chat: bool = False, **values: object
) -> PromptTemplate:
    dataset = DatasetConfig.model_validate({"train_file": "a.jsonl", **values})
    return PromptTemplate.for_run(dataset, task, seq2seq=seq2seq, has_chat_template=chat)


def test_seq2seq_prompts_are_those_of_t5() -> None:
    answering = template(seq2seq=True)
    assert answering.render("Who?") == "question: Who?"
    assert answering.render("Who?", "Her.") == "question: Who? context: Her."
    assert template("summarization", seq2seq=True).render("Long.") == "summarize: Long."
    translation = template("translation", seq2seq=True, source_language="English", target_language="German")
    assert translation.render("Yes.") == "translate English to German: Yes."
    assert not template(seq2seq=True, chat=True).chat


def test_plain_causal_prompts() -> None:
    answering = template()
    assert answering.render("Who?", "Her.") == "Context: Her.\nQuestion: Who?\nAnswer:"
    assert answering.target_prefix == " "
    assert template("instruction").render("Do.", "It.").endswith("### Input:\nIt.\n\n### Response:\n")
    assert template("language-modeling", chat=True).render("Once") == "Once"


def test_braces_in_the_data_are_text() -> None:
    assert template(seq2seq=True).render("{context} {x}", "{input}") == "question: {context} {x} context: {input}"


def test_chat_uses_the_models_template_when_there_is_one() -> None:
    assert template(chat=True).chat
    assert not template(chat=True, use_chat_template=False).chat
    system = template(chat=True, system_prompt="Be brief.")
    assert system.conversation("Who?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
    ]
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "x"}]
    assert system.with_system(own) == own


def test_own_wording() -> None:
    own = template(prompt_template="{context} | {input} =")
    assert own.render("b", "a") == "a | b ="
    assert own.target_prefix == " "
    assert template(prompt_template="Q {input}\n").target_prefix == ""
    assert template(prompt_template="Q {input}").context_prompt is None


def test_json_round_trip() -> None:
    made = template("translation", chat=True, source_language="A", target_language="B", system_prompt="S")
    assert PromptTemplate.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("task", "options", "key"),
    [
        ("translation", {}, "dataset.source_language"),
        ("question-answering", {"system_prompt": "x"}, "dataset.system_prompt"),
        ("summarization", {"context_column": "c"}, "dataset.context_column"),
        (
            "question-answering",
            {"context_column": "c", "prompt_template": "{input}"},
            "dataset.context_column",
        ),
        ("question-answering", {"seq2seq": True, "use_chat_template": True}, "dataset.use_chat_template"),
        ("language-modeling", {"chat": True, "use_chat_template": True}, "dataset.use_chat_template"),
        ("language-modeling", {"prompt_template": "{input}"}, "dataset.prompt_template"),
        ("language-modeling", {"seq2seq": True}, "model.task_type"),
        ("chat", {"seq2seq": True}, "model.task_type"),
        ("chat", {"chat": True, "use_chat_template": False}, "dataset.use_chat_template"),
    ],
)
def test_contradictions_name_the_key(task: TaskType, options: dict[str, bool], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        template(task, **options)  # type: ignore[arg-type]
    assert caught.value.key == key


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        template("chat")
    with pytest.raises(ModelError, match="no chat template"):
        template(use_chat_template=True)


def test_inputs_and_targets_of_rows() -> None:
    dataset = DatasetConfig(train_file="a.jsonl")
    columns = columns_for(dataset, "question-answering")
    row = {"question": "Who?", "answer": "Her", "context": "C"}
    assert template().input_of(row, columns) == PromptInput("Who?", "C")
    assert template().target_of(row, columns) == "Her"
    assert template(prompt_template="{input}").input_of(row, columns) == PromptInput("Who?")
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ]
    chat, columns = template("chat", chat=True), columns_for(dataset, "chat")
    assert chat.input_of({"messages": talk}, columns) == PromptInput(messages=tuple(talk[:3]))
    assert chat.target_of({"messages": talk}, columns) == "d"
    modelling = columns_for(dataset, "language-modeling")
    assert template("language-modeling").input_of({"text": "t"}, modelling).text == "t"
    assert template("language-modeling").target_of({"text": "t"}, modelling) == ""
