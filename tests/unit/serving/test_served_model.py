"""A text generator as a served model: prompts of all kinds, tokens in their places, owners, fingerprints."""

from __future__ import annotations

import asyncio
import codecs
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.errors import RequestError
from rayloom.generation import TextGenerator, open_plain
from rayloom.models import LoadedModel, family_of
from rayloom.serving.answering import answer
from rayloom.serving.calls import Call, Completion, Part, Problem, Prompt, Started, TextCall
from rayloom.serving.model import TextGeneratorModel
from rayloom.serving.prompts import offsets_in
from tests.unit.generation.conftest import make_model, make_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def served_of(family: str = "gpt2", *, chat: bool = False, **options: Any) -> TextGeneratorModel:
    tokenizer = make_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    model: Any = make_model(family, tokenizer)
    opened = open_plain(LoadedModel(model, tokenizer, family_of(model.config)), name="tiny")
    return TextGeneratorModel(TextGenerator.from_opened(opened, device="cpu"), max_time_s=30.0, **options)


@pytest.fixture(scope="module")
def served() -> TextGeneratorModel:
    return served_of(chat=True)


@pytest.fixture(scope="module")
def plain() -> TextGeneratorModel:
    return served_of()


def said(*turns: str) -> Prompt:
    roles = ("user", "assistant") * len(turns)
    return Prompt(messages=tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False)))


def completed(served: TextGeneratorModel, call: Call) -> Completion:
    return asyncio.run(served.complete(call))


def test_a_conversation_goes_through_the_chat_template(served: TextGeneratorModel) -> None:
    found = served.tokens(TextCall(said("hello", "yes", "and you")))
    assert (
        found.token_ids
        == served.tokens(TextCall(Prompt("[user]hello[assistant]yes[user]and you[assistant]", raw=True))).token_ids
    )
    written = completed(served, Call(said("hello", "yes", "and you"), {"max_new_tokens": 4}))
    assert written.started.prompt_tokens == len(found.token_ids)


def test_without_a_template_one_message_is_the_prompt_and_more_are_refused(plain: TextGeneratorModel) -> None:
    parameters = {"max_new_tokens": 5}
    chat, raw = (
        completed(plain, Call(each, parameters)) for each in (said("The river"), Prompt("The river", raw=True))
    )
    assert chat.texts == raw.texts
    with pytest.raises(RequestError, match="no chat template: send one message"):
        completed(plain, Call(said("a", "b", "c"), parameters))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("", raw=True), "the prompt is empty"),
        (Prompt(token_ids=()), "the prompt is empty"),
        (Prompt(token_ids=(1, -1)), "the prompt has token -1"),
        (Prompt(token_ids=(10**9,)), "the prompt has token 1000000000"),
        (Prompt("a " * 200, raw=True), "too many for the model's 96 positions"),
    ],
)
def test_prompts_that_cannot_be_read_are_the_callers_mistake(
    plain: TextGeneratorModel, prompt: Prompt, message: str
) -> None:
    for parameters in ({}, {"num_beams": 2}):
        outcome = asyncio.run(answer(plain, Call(prompt, parameters)))
        assert isinstance(outcome, Problem)
        assert outcome.status == 400
        assert message in outcome.message


@pytest.mark.parametrize(
    "parameters",
    [
        {"logprobs": 2},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3, "logprobs": 0},
        {"num_beams": 2, "logprobs": 1},
        {"prefix": "The old", "logprobs": 1},
        {"stop_strings": ["e"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", [Prompt("The river", raw=True), said("hello")], ids=["raw", "chat"])
def test_streams_are_the_whole_answers(served: TextGeneratorModel, prompt: Prompt, parameters: dict[str, Any]) -> None:
    call = Call(prompt, {"max_new_tokens": 12, **parameters})

    async def events() -> list[Started | Part]:
        return [event async for event in served.stream(call)]

    whole = completed(served, call)
    started, *parts = asyncio.run(events())
    assert started == whole.started
    assert sum(part.num_tokens for part in parts if isinstance(part, Part)) == whole.completion_tokens
    for index, choice in enumerate(whole.choices):
        mine = [part for part in parts if isinstance(part, Part) and part.index == index]
        assert "".join(part.text for part in mine) == choice.text
        assert tuple(token for part in mine for token in part.tokens) == (choice.tokens or ())
        assert mine[-1].finish_reason == choice.finish_reason


def test_candidates_are_ranked_by_mean_log_probability(plain: TextGeneratorModel) -> None:
    parameters = {"max_new_tokens": 6, "do_sample": True, "seed": 1}
    prompt = Prompt("The river", raw=True)
    every = completed(plain, Call(prompt, {**parameters, "num_return_sequences": 6, "logprobs": 0}))

    def mean(tokens: Any) -> float:
        scores = [token.logprob for token in tokens]
        return float(sum(scores) / len(scores))

    ranked = sorted(every.choices, key=lambda choice: mean(choice.tokens), reverse=True)
    best = completed(plain, Call(prompt, {**parameters, "num_return_sequences": 2}, best_of=6))
    assert best.texts == tuple(choice.text for choice in ranked[:2])
    assert all(choice.tokens is None for choice in best.choices)
    assert best.completion_tokens == every.completion_tokens


def test_owners_reach_the_engine(plain: TextGeneratorModel) -> None:
    assert plain._writer(Call(Prompt("x"), owner="ada")).addressing.owner == "ada"


def test_the_fingerprint_follows_from_what_is_served() -> None:
    first, second, other = served_of(), served_of(), served_of()
    assert first._fingerprint == second._fingerprint
    generator = other._generator
    generator.defaults = generator.parameters({"max_new_tokens": 3})
    assert TextGeneratorModel(generator, max_time_s=1.0)._fingerprint != first._fingerprint


def test_offsets_of_special_tokens_and_pieces_of_characters() -> None:
    pieces = [b"<s>", b" The", b" ca", b"f", b"\xc3", b"\xa9", b"!"]
    assert offsets_in("The café!", pieces) == [0, 0, 3, 6, 7, 7, 8]
    assert offsets_in("<s> The café!", pieces) == [0, 3, 7, 10, 11, 11, 12]
    assert offsets_in("", [b"</s>"]) == [0]


@given(st.text(max_size=30), st.lists(st.integers(1, 6), max_size=60))
@settings(max_examples=200)
def test_offsets_are_where_decoding_arrives(text: str, sizes: list[int]) -> None:
    """However a text's bytes are cut, each piece begins behind the whole characters before it."""
    raw, pieces = text.encode("utf-8", errors="ignore"), []
    text = raw.decode()
    for size in [*sizes, len(raw)]:
        if raw:
            pieces.append(raw[:size])
            raw = raw[size:]
    decoder = codecs.getincrementaldecoder("utf-8")()
    expected, place = [], 0
    for piece in pieces:
        expected.append(place)
        place += len(decoder.decode(piece))
    assert offsets_in(text, pieces) == expected


def test_a_drawn_seed_counts_only_where_nobody_names_one() -> None:
    def texts(served: TextGeneratorModel, drawn_seed: int, **parameters: int) -> tuple[str, ...]:
        given = {"do_sample": True, "max_new_tokens": 8, **parameters}
        return completed(served, Call(Prompt("The river", raw=True), given, drawn_seed=drawn_seed)).texts

    free, fixed = served_of(), served_of(changes={"seed": 5})
    assert texts(free, 1) == texts(free, 1) != texts(free, 2)
    assert texts(free, 1, seed=5) == texts(free, 2, seed=5)
    assert texts(fixed, 1) == texts(fixed, 2) == texts(free, 1, seed=5)
    assert texts(fixed, 1, seed=6) == texts(free, 2, seed=6)
