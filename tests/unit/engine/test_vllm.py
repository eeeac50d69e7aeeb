"""vLLM's side of the engine without vLLM: a pretended process, and a real one that finds no vLLM."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque

import pytest
import torch
from transformers import PreTrainedModel

from rayloom.engine import Done, EngineOptions, EngineRequest, Failed, NewToken, Params
from rayloom.engine.vllm import VllmEngine, open_vllm
from rayloom.errors import EngineError, ModelError, RequestError
from tests.fakes import tiny_model

END = 9


class Pretended:
    """Keeps what is sent; says what it is told to."""

    max_length = 50

    def __init__(self):
        self.sent, self.lines = [], deque()

    def send(self, message):
        self.sent.append(message)

    def receive(self, timeout_s):
        return self.lines.popleft() if self.lines else []


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def process():
    return Pretended()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(process, clock, tmp_path):
    return VllmEngine(process, max_sequences=4, adapters={"fr": tmp_path}, clock=clock)


def request(**options):
    params = {"max_new_tokens": 8, "eos_token_ids": (END,)} | options.pop("params", {})
    return EngineRequest(start_ids=(1, 2), params=Params(**params), **options)


def part(tokens, *, index=0, scores=None, reason=None, **more):
    return {"id": "0", "index": index, "tokens": tokens, "scores": scores, "reason": reason} | more


def test_tokens_become_events_and_the_end_of_sequence_is_none_of_them(engine, process):
    assert engine.submit(request()) == 0
    process.lines += [[part([3, 4])], [part([5, END], reason="stop")]]
    assert engine.step() == [NewToken(0, 0, 3), NewToken(0, 0, 4)]
    *tokens, done = engine.step()
    assert tokens == [NewToken(0, 0, 5)]
    assert isinstance(done, Done)
    assert [(each.tokens, each.reason) for each in done.hypotheses] == [((3, 4, 5), "stop")]
    assert not engine.has_work


def test_a_stop_string_ends_the_answer_and_vllm_is_told(engine, process):
    engine.submit(request(stop=lambda tokens: tokens[-2:] == [4, 4]))
    process.lines.append([part([4, 4, 6])])
    *tokens, done = engine.step()
    assert [event.token for event in tokens] == [4, 4]
    assert (done.hypotheses[0].tokens, done.hypotheses[0].reason) == ((4, 4), "stop")
    assert process.sent[-1] == {"cancel": "0"}


def test_several_answers_wait_for_the_last_one_and_keep_their_scores(engine, process):
    engine.submit(request(params={"num_return_sequences": 2, "do_sample": True, "logprobs": 1}))
    score = [-0.5, [[3, -0.5]]]
    process.lines += [
        [part([3], scores=[score], reason="length")],
        [part([4, END], index=1, scores=[score, score], reason="stop")],
    ]
    assert len(engine.step()) == 1
    done = engine.step()[-1]
    assert [each.tokens for each in done.hypotheses] == [(3,), (4,)]
    assert [len(each.logprobs) for each in done.hypotheses] == [1, 1]
    assert done.hypotheses[0].end is None
    assert done.hypotheses[1].end[0] == END


def test_a_request_whose_time_is_over_ends_with_what_it_has(engine, process, clock):
    engine.submit(request(params={"max_time": 2.0}))
    process.lines.append([part([3])])
    engine.step()
    clock.now = 2.5
    (done,) = engine.step()
    assert (done.hypotheses[0].tokens, done.hypotheses[0].reason) == ((3,), "time")
    assert done.timing.decode_s == 2.5
    assert process.sent[-1] == {"cancel": "0"}


def test_what_comes_for_a_request_that_left_is_dropped(engine, process):
    engine.cancel(engine.submit(request()))
    assert process.sent[-1] == {"cancel": "0"}
    process.lines.append([part([3])])
    assert engine.step() == []


def test_what_vllm_refuses_or_breaks_off_fails_that_request_alone(engine, process):
    engine.submit(request())
    engine.submit(request())
    process.lines += [[{"id": "0", "refused": "ValueError: no"}], [part([], reason="abort") | {"id": "1"}]]
    (refused,), (broken,) = engine.step(), engine.step()
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, RequestError)
    assert "ValueError: no" in str(refused.error)
    assert isinstance(broken.error, EngineError)
    assert not engine.has_work


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"params": {"num_beams": 2}}, "num_beams"),
        ({"params": {"no_repeat_ngram_size": 2}}, "no_repeat_ngram_size"),
        ({"params": {"suppress_tokens": (3,)}}, "suppress_tokens"),
        ({"params": {"num_return_sequences": 2}}, "num_return_sequences"),
        ({"params": {"logit_bias": ((3, 101.0),)}}, "logit_bias"),
        ({"params": {"max_new_tokens": 49}}, "holds 50"),
        ({"constraints": (object(),)}, "json_schema"),
        ({"adapter": "de"}, "adapter 'de'"),
    ],
)
def test_what_it_cannot_do_is_refused_before_vllm_hears_of_it(engine, process, options, named):
    with pytest.raises(RequestError, match=named):
        engine.submit(request(**options))
    assert process.sent == []
    assert not engine.has_work


def test_parameters_and_adapter_travel(engine, process, tmp_path):
    params = {
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 7,
        "seed": 3,
        "min_new_tokens": 2,
        "logit_bias": ((4, 1.5),),
    }
    engine.submit(request(params=params, adapter="fr", priority=2))
    (sent,) = process.sent
    assert (sent["prompt"], sent["adapter"], sent["priority"]) == ([1, 2], ["fr", 1, str(tmp_path)], 2)
    expected = {"temperature": 0.5, "top_k": 7, "seed": 3, "min_tokens": 2, "max_tokens": 8, "stop_token_ids": [END]}
    assert {name: sent["params"][name] for name in expected} == expected
    assert sent["params"]["logit_bias"] == {"4": 1.5}


def opened(model: PreTrainedModel, **options):
    return open_vllm(model, EngineOptions(kind="vllm", **options), torch.device("cpu"), {})


def test_without_an_environment_or_without_vllm_in_it_it_says_how_to_get_one(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.delenv("RAYLOOM_VLLM_PYTHON", raising=False)
    with pytest.raises(ModelError, match="pip install vllm"):
        opened(model)
    monkeypatch.setenv("RAYLOOM_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(ModelError, match="/nowhere/python cannot be run"):
        opened(model)
    if importlib.util.find_spec("vllm") is None:
        monkeypatch.setenv("RAYLOOM_VLLM_PYTHON", sys.executable)
        with pytest.raises(ModelError, match="No module named 'vllm'"):
            opened(model)


def test_what_vllm_does_not_serve_is_said_at_once():
    with pytest.raises(ModelError, match="encoder-decoder"):
        opened(tiny_model("t5"))
    with pytest.raises(ModelError, match="int8"):
        opened(tiny_model("llama"), precision="int8")
