from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from rayloom.errors import ModelError
from rayloom.serving.answering import answer, answer_in_parts
from rayloom.serving.calls import (
    Call,
    Completion,
    Event,
    ModelInfo,
    Outcome,
    Part,
    Problem,
    Prompt,
    Started,
    TextCall,
    Tokens,
)
from tests.fakes_serving import PLAIN_MODEL, FakeModel


def call(text: str, **parameters: Any) -> Call:
    return Call(Prompt(text), parameters)


def outcomes_of(model: FakeModel, calls: list[Call]) -> list[Outcome]:
    async def all_at_once() -> list[Outcome]:
        return await asyncio.gather(*(answer(model, each) for each in calls))

    return asyncio.run(all_at_once())


class Broken(FakeModel):
    """Its adapter is gone from the disk."""

    async def complete(self, call: Call) -> Completion:
        raise ModelError("/srv/models/legal has changed since adapter 'legal' was loaded")


def test_what_the_operator_has_to_mend_is_not_the_callers_mistake(caplog: pytest.LogCaptureFixture) -> None:
    (outcome,) = outcomes_of(Broken(), [call("a")])
    assert isinstance(outcome, Problem)
    assert (outcome.status, outcome.type) == (500, "internal")
    assert "/srv" not in outcome.message
    assert "/srv/models/legal has changed" in caplog.text


def test_one_bad_call_does_not_take_the_others_along() -> None:
    outcomes = outcomes_of(FakeModel(), [call("a"), call("bad"), call("crash"), call("b")])
    assert isinstance(outcomes[0], Completion)
    assert outcomes[1] == Problem(400, "invalid_request", "the prompt is bad")
    assert isinstance(outcomes[2], Problem)
    assert outcomes[2].status == 500
    assert "secret" not in outcomes[2].message
    assert isinstance(outcomes[3], Completion)


def test_parameters_that_contradict_each_other_are_the_callers_mistake() -> None:
    (outcome,) = outcomes_of(FakeModel(), [call("a", num_beams=3, num_beam_groups=2)])
    assert outcome == Problem(400, "invalid_request", "num_beams 3 is not a multiple of num_beam_groups 2")


def test_a_call_for_another_model_is_not_found() -> None:
    model = FakeModel()
    mine, other = outcomes_of(model, [Call(Prompt("a"), model="fake-qa"), Call(Prompt("a"), model="gpt-4")])
    assert isinstance(mine, Completion)
    assert other == Problem(
        404, "model_not_found", "the model 'gpt-4' does not exist here; this server has 'fake-qa'", param="model"
    )


def test_streams_are_refused_and_fail_as_whole_answers_do() -> None:
    async def events_of(each: Call) -> list[Event]:
        return [event async for event in answer_in_parts(FakeModel(), each)]

    for text, status in (("bad", 400), ("crash", 500)):
        (problem,) = asyncio.run(events_of(call(text)))
        assert isinstance(problem, Problem)
        assert problem.status == status
    started, *parts = asyncio.run(events_of(call("a b")))
    assert isinstance(started, Started)
    assert "".join(part.text for part in parts if isinstance(part, Part)) == "A B"


def test_questions_need_a_template() -> None:
    model = FakeModel(PLAIN_MODEL)
    outcomes = outcomes_of(model, [Call(Prompt("why?"), asks_question=True), call("a")])
    assert isinstance(outcomes[0], Problem)
    assert "POST /generate" in outcomes[0].message
    assert isinstance(outcomes[1], Completion)
    assert model.calls == [call("a")]


def test_a_context_that_the_template_has_no_place_for_is_refused() -> None:
    model = FakeModel(ModelInfo("sum", "t5", "summarization", takes_context=False))
    refused, written = outcomes_of(model, [Call(Prompt("text", context="about")), call("a")])
    assert isinstance(refused, Problem)
    assert "has no place for a context" in refused.message
    assert isinstance(written, Completion)


def test_what_travels_between_processes_pickles() -> None:
    outcomes = outcomes_of(FakeModel(), [call("a", logprobs=1), call("bad")])
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes


def test_cancelling_a_call_reaches_the_model() -> None:
    class Waiting:
        info = PLAIN_MODEL
        cancelled = False

        def tokens(self, call: TextCall) -> Tokens:
            raise NotImplementedError

        def stream(self, call: Call) -> AsyncGenerator[Started | Part]:
            raise NotImplementedError

        async def complete(self, call: Call) -> Completion:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            raise AssertionError

    async def cancel_one(model: Waiting) -> None:
        task = asyncio.create_task(answer(model, call("a")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    model = Waiting()
    asyncio.run(cancel_one(model))
    assert model.cancelled
