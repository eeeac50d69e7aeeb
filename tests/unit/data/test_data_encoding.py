from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rayloom.config import DatasetConfig, TaskType
from rayloom.data import IGNORED, Columns, Encoder, Example, PromptInput, PromptTemplate, columns_for
from rayloom.data.tokenization import Texts
from rayloom.errors import DataError, ModelError, RequestError

EOS = 1
TokenizerFactory = Callable[..., PreTrainedTokenizerFast]


def make(
    tokenizer: PreTrainedTokenizerFast,
    task: TaskType = "question-answering",
    *,
    seq2seq: bool = False,
    lengths: tuple[int, int] = (200, 50),
    **values: object,
) -> tuple[Encoder, Columns]:
    dataset = DatasetConfig.model_validate({"train_file": "a.jsonl", **values})
    template = PromptTemplate.for_run(
        dataset, task, seq2seq=seq2seq, has_chat_template=tokenizer.chat_template is not None
    )
    encoder = Encoder(tokenizer, template, max_input_length=lengths[0], max_target_length=lengths[1])
    return encoder, columns_for(dataset, task)


def encode(encoder: Encoder, columns: Columns, **row: Any) -> Example:
    example = encoder.encode(row, columns)
    assert example is not None
    return example


def learned(example: Example) -> list[int]:
    return [label for label in example.labels if label != IGNORED]


def test_seq2seq_prompt_and_target_end_with_eos(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(plain_tokenizer, seq2seq=True)
    example = encode(encoder, columns, question="Who?", context="Her.", answer="Ada")
    assert plain_tokenizer.decode(example.input_ids) == "question: Who? context: Her.</s>"
    assert plain_tokenizer.decode(example.labels) == "Ada</s>"
    assert example.input_ids == encoder.prompt_ids(PromptInput("Who?", "Her."))
    assert encoder.prefix_ids("Ad") == plain_tokenizer.encode("Ad", add_special_tokens=False)


def test_a_tokenizer_that_adds_eos_itself_does_not_double_it(new_tokenizer: TokenizerFactory) -> None:
    tokenizer = new_tokenizer(eos=True)
    encoder, columns = make(tokenizer, seq2seq=True)
    example = encode(encoder, columns, question="Who?", answer="Ada")
    assert example.input_ids.count(EOS) == 1
    assert example.labels.count(EOS) == 1
    causal, columns = make(tokenizer)
    assert EOS not in causal.prompt_ids(PromptInput("Who?"))


def test_causal_loss_is_on_the_target_only(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(plain_tokenizer)
    example = encode(encoder, columns, question="Who?", answer=" Ada\n")
    prompt = encoder.prompt_ids(PromptInput("Who?"))
    assert plain_tokenizer.decode(example.input_ids) == "Question: Who?\nAnswer: Ada</s>"
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels == [IGNORED] * len(prompt) + example.input_ids[len(prompt) :]
    assert encoder.prefix_ids("Ada") == learned(example)[:-1]


def test_one_bos_and_never_two(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(bos_tokenizer)
    example = encode(encoder, columns, question="Who?", answer="Ada")
    assert example.input_ids[0] == 2
    assert example.input_ids.count(2) == 1
    raw, _ = make(bos_tokenizer, "language-modeling")
    assert raw.prompt_ids(PromptInput("<s>Who?")) == raw.prompt_ids(PromptInput("Who?"))


def test_sentencepiece_like_targets_get_no_second_space() -> None:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "\u2581": 3, "\n": 4}
    for word in ("a", "b", "\u2581a", "\u2581b", ":", "Answer"):
        vocabulary[word] = len(vocabulary)
    inner = Tokenizer(models.Unigram([(word, -1.0) for word in vocabulary], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    encoder, columns = make(tokenizer, prompt_template="{input}:")
    example = encode(encoder, columns, question="a", answer="b")
    assert tokenizer.convert_ids_to_tokens(learned(example)) == ["\u2581b", "</s>"]


def test_the_context_is_cut_first_then_the_input(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    question, context = "Who was it then?", "word " * 100
    for limit in range(16, 140):
        encoder, _ = make(plain_tokenizer, lengths=(limit, 50))
        prompt = encoder.prompt(PromptInput(question, context))
        text = plain_tokenizer.decode(prompt.ids)
        assert len(prompt.ids) <= limit
        assert text.endswith("\nAnswer:")
        assert prompt.truncated
        if "Context" in text:
            assert f"Question: {question}\n" in text
            assert len(prompt.ids) >= limit - 1
        elif f"Question: {question}\n" not in text:
            assert len(prompt.ids) == limit
    whole, _ = make(plain_tokenizer, lengths=(1000, 50))
    assert not whole.prompt(PromptInput(question, context)).truncated


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=60), st.text(max_size=60), st.integers(20, 60), st.booleans())
def test_prompts_never_exceed_the_limit(
    new_tokenizer: TokenizerFactory, text: str, context: str, limit: int, seq2seq: bool
) -> None:
    encoder, _ = make(new_tokenizer(), seq2seq=seq2seq, lengths=(limit, 50))
    if not text.strip():
        with pytest.raises(RequestError, match="empty"):
            encoder.prompt(PromptInput(text, context))
        return
    assert 0 < len(encoder.prompt_ids(PromptInput(text, context))) <= limit


def test_a_template_without_room_is_an_error(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, _ = make(plain_tokenizer, lengths=(4, 50))
    with pytest.raises(DataError, match=r"leaves no room for the input; raise dataset.max_input_length"):
        encoder.prompt_ids(PromptInput("Who was it?"))


def test_prompts_that_the_template_cannot_take(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    talk = ({"role": "user", "content": "x"},)
    answering, _ = make(plain_tokenizer)
    with pytest.raises(RequestError, match="no chat template"):
        answering.prompt_ids(PromptInput(messages=talk))
    summaries, _ = make(plain_tokenizer, "summarization")
    with pytest.raises(RequestError, match="no place for a context"):
        summaries.prompt_ids(PromptInput("x", "c"))
    raw, _ = make(plain_tokenizer, "language-modeling")
    with pytest.raises(RequestError, match="takes no context"):
        raw.prompt_ids(PromptInput("x", "c"))


def test_long_targets_are_cut_and_keep_their_end(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    for seq2seq in (True, False):
        encoder, columns = make(plain_tokenizer, seq2seq=seq2seq, lengths=(100, 5))
        example = encode(encoder, columns, question="Who?", answer="one two three four five six")
        assert len(learned(example)) == 5
        assert learned(example)[-1] == EOS
        assert example.target_truncated


def test_empty_rows_give_nothing(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(plain_tokenizer)
    assert encoder.examples({"question": " ", "answer": "a"}, columns) == ([], "empty input")
    assert encoder.examples({"question": "q", "answer": "\n"}, columns) == (
        [],
        "nothing of the target is left",
    )


def test_language_modelling_predicts_every_token_once(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(bos_tokenizer, "language-modeling", lengths=(8, 50))
    text = "It is a truth universally acknowledged, that a single man."
    ids = [2, *bos_tokenizer.encode(text, add_special_tokens=False), EOS]
    blocks, reason = encoder.examples({"text": text}, columns)
    assert reason is None
    assert all(2 <= len(block.input_ids) <= 8 and block.labels == block.input_ids for block in blocks)
    predicted = [label for block in blocks for label in block.labels[1:]]
    assert predicted == ids[1:]
    assert encoder.examples({"text": " \n"}, columns) == ([], "empty input")


def test_a_long_raw_prompt_keeps_its_end(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, _ = make(bos_tokenizer, "language-modeling", lengths=(6, 50))
    prompt = encoder.prompt(PromptInput("a b c d e f g h"))
    whole = bos_tokenizer.encode("a b c d e f g h", add_special_tokens=False)
    assert prompt.ids == [2, *whole[-5:]]
    assert prompt.truncated


def test_answers_through_the_chat_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(chat_tokenizer, system_prompt="Be brief.")
    example = encode(encoder, columns, question="Who?", answer=" Ada ")
    prompt = encoder.prompt_ids(PromptInput("Who?"))
    start = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nWho?<|end|>\n<|start|>assistant\n"
    assert chat_tokenizer.decode(prompt) == start
    assert example.input_ids[: len(prompt)] == prompt
    assert chat_tokenizer.decode(learned(example)) == "Ada<|end|>"
    assert set(example.labels[: len(prompt)]) == {IGNORED}


TALK = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ada"},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In 1815. "},
    {"role": "user", "content": "Thanks"},
]


def test_every_assistant_turn_is_learned(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, columns = make(chat_tokenizer, "chat")
    example = encode(encoder, columns, messages=TALK)
    assert chat_tokenizer.decode(learned(example)) == "Ada<|end|>In 1815.<|end|>"
    for turns in (1, 3):
        prompt = encoder.prompt_ids(PromptInput(messages=tuple(TALK[:turns])))
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] == example.input_ids[len(prompt)]


def test_a_template_without_eos_gets_one_at_the_end(new_tokenizer: TokenizerFactory) -> None:
    tokenizer = new_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder, columns = make(tokenizer, "chat")
    example = encode(encoder, columns, messages=TALK)
    assert tokenizer.decode(learned(example)) == "AdaIn 1815.</s>"
    answering, columns = make(tokenizer)
    assert tokenizer.decode(learned(encode(answering, columns, question="x", answer="y"))) == "y</s>"


def test_a_template_that_rewrites_history_is_refused_for_long_talks_only(
    new_tokenizer: TokenizerFactory,
) -> None:
    tokenizer = new_tokenizer(chat=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|start|>{{ m.role }}\n{% if not loop.last %}old {% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n<think>{% endif %}"
    )
    encoder, columns = make(tokenizer, "chat")
    with pytest.raises(RequestError, match="rewrites earlier turns"):
        encoder.encode({"messages": TALK}, columns)
    example = encode(encoder, columns, messages=TALK[:2])
    assert tokenizer.decode(learned(example)) == "Ada<|end|>"
    assert tokenizer.decode(example.input_ids).endswith("<think>Ada<|end|>")


def test_long_talks_lose_their_oldest_turns_when_asked(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    wanted = "<|start|>system\nS<|end|>\n<|start|>user\nThanks<|end|>\n<|start|>assistant\n"
    limit = len(chat_tokenizer.encode(wanted, add_special_tokens=False)) + 2
    encoder, columns = make(chat_tokenizer, "chat", lengths=(limit, 4), system_prompt="S")
    prompt = encoder.prompt(PromptInput(messages=tuple(TALK)))
    assert prompt.truncated
    assert chat_tokenizer.decode(prompt.ids) == wanted
    long = ({"role": "user", "content": "word " * 50},)
    cut = encoder.prompt(PromptInput(messages=long))
    assert limit - 1 <= len(cut.ids) <= limit
    assert chat_tokenizer.decode(cut.ids).endswith("<|end|>\n<|start|>assistant\n")
    example = encode(encoder, columns, messages=TALK)
    assert example.target_truncated
    assert len(example.input_ids) == limit + 4
    assert encoder.encode({"messages": [*long, TALK[1]]}, columns) is None


def test_a_very_long_talk_is_not_read_anew_for_every_turn_that_it_loses(
    chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = make(chat_tokenizer, "chat", lengths=(90, 4))
    turns = [{"role": ("user", "assistant")[at % 2], "content": f"word {at} " * (1 + at % 3)} for at in range(201)]
    num_kept = next(
        n for n in range(1, 201, 2) if encoder.prompt(PromptInput(messages=tuple(turns[-n - 2 :]))).truncated
    )
    ids = encoder.prompt_ids(PromptInput(messages=tuple(turns[-num_kept:])))
    num_rendered, render = 0, Texts.chat_text

    def counted(texts: Texts, *args: Any, **options: Any) -> str:
        nonlocal num_rendered
        num_rendered += 1
        return render(texts, *args, **options)

    monkeypatch.setattr(Texts, "chat_text", counted)
    prompt = encoder.prompt(PromptInput(messages=tuple(turns)))
    assert (prompt.ids, prompt.truncated) == (ids, True)
    assert 1 < num_kept < 30
    assert num_rendered < 12


@pytest.mark.parametrize("messages", [(), (TALK[1],), ({"role": "user"},), ({"role": "bot", "content": "x"}, TALK[0])])
def test_bad_messages(chat_tokenizer: PreTrainedTokenizerFast, messages: tuple[dict[str, str], ...]) -> None:
    encoder, _ = make(chat_tokenizer, "chat")
    with pytest.raises(RequestError, match="message"):
        encoder.prompt_ids(PromptInput(messages=messages))


def test_a_tokenizer_without_an_end_is_refused(new_tokenizer: TokenizerFactory) -> None:
    tokenizer = new_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        make(tokenizer)
