from __future__ import annotations

import pickle
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rayloom.serving.batching import run_batch
from rayloom.serving.calls import Call, Completion, ModelInfo, Problem, Prompt
from tests.fakes_serving import PLAIN_MODEL, FakeModel


def call(text: str, **parameters: Any) -> Call:
    return Call(Prompt(text), parameters)


def test_equal_parameters_are_generated_together_and_order_is_kept() -> None:
    model = FakeModel()
    outcomes = run_batch(
        model,
        [call("a b c"), call("d e f", max_new_tokens=1), call("g"), call("h i", max_new_tokens=1)],
    )
    assert [outcome.texts[0] for outcome in outcomes if isinstance(outcome, Completion)] == [
        "A B C",
        "D",
        "G",
        "H",
    ]
    assert model.batches == [(["a b c", "g"], {}), (["d e f", "h i"], {"max_new_tokens": 1})]


def test_one_bad_call_does_not_take_the_others_along() -> None:
    outcomes = run_batch(FakeModel(), [call("a"), call("bad"), call("crash"), call("b")])
    assert isinstance(outcomes[0], Completion)
    assert outcomes[1] == Problem(400, "invalid_request", "the prompt is bad")
    assert isinstance(outcomes[2], Problem)
    assert outcomes[2].status == 500
    assert isinstance(outcomes[3], Completion)


def test_parameters_that_contradict_each_other_are_the_callers_mistake() -> None:
    (outcome,) = run_batch(FakeModel(), [call("a", num_beams=3, num_beam_groups=2)])
    assert outcome == Problem(400, "invalid_request", "num_beams 3 is not a multiple of num_beam_groups 2")


def test_true_and_one_are_different_parameters() -> None:
    model = FakeModel()
    run_batch(model, [call("a", early_stopping=True), call("b", early_stopping=1)])
    assert len(model.batches) == 2


def test_questions_need_a_template() -> None:
    question = Call(Prompt("why?"), asks_question=True)
    model = FakeModel(PLAIN_MODEL)
    outcomes = run_batch(model, [question, call("a")])
    assert isinstance(outcomes[0], Problem)
    assert "POST /generate" in outcomes[0].message
    assert isinstance(outcomes[1], Completion)
    assert model.batches == [(["a"], {})]


@given(st.lists(st.tuples(st.sampled_from(["a b", "c", "bad", "crash"]), st.sampled_from([None, 1, 2])), max_size=12))
def test_every_call_has_the_outcome_it_has_alone(wanted: list[tuple[str, int | None]]) -> None:
    calls = [call(text) if limit is None else call(text, max_new_tokens=limit) for text, limit in wanted]
    assert run_batch(FakeModel(), calls) == [run_batch(FakeModel(), [one])[0] for one in calls]


def test_what_travels_between_processes_pickles() -> None:
    outcomes = run_batch(FakeModel(), [call("a", logprobs=1), call("bad")])
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes


def test_a_context_that_the_template_has_no_place_for_is_refused() -> None:
    info = ModelInfo("sum", "t5", "summarization", takes_context=False)
    with_context = Call(Prompt("text", context="about"))
    refused, written = run_batch(FakeModel(info), [with_context, call("a")])
    assert isinstance(refused, Problem)
    assert "has no place for a context" in refused.message
    assert isinstance(written, Completion)
