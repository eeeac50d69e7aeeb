"""A model behind a server: what comes back is what a local one gives."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from rayloom.errors import RequestError
from rayloom.generation.endpoint import Endpoint
from rayloom.generation.remote import RemoteTextGenerator


def remote(answer: httpx.Response) -> RemoteTextGenerator:
    return RemoteTextGenerator(endpoint=Endpoint("http://there", transport=httpx.MockTransport(lambda request: answer)))


def whole(*texts: str) -> httpx.Response:
    answers = [{"text": text, "token_ids": [1], "finish_reason": "stop"} for text in texts]
    return httpx.Response(200, json={"text": texts[0], "details": {"prompt_ids": [1], "answers": answers}})


def events(*values: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, text="".join(f"data: {json.dumps(value)}\n\n" for value in values) + "data: [DONE]\n\n")


def test_a_server_whose_own_default_is_several_answers_gives_them_all() -> None:
    assert remote(whole("a", "b")).generate("x") == ["a", "b"]
    assert remote(whole("a")).generate("x") == "a"
    assert remote(whole("a", "b")).generate_batch(["x"]) == [["a", "b"]]


def test_several_answers_are_not_mixed_into_one_stream() -> None:
    one = events({"index": 0, "text": "a"}, {"index": 0, "text": "b"}, {"finish_reason": "stop"})
    assert list(remote(one).stream("x")) == ["a", "b"]
    pieces = remote(events({"index": 0, "text": "a"}, {"index": 1, "text": "z"})).stream("x")
    assert next(pieces) == "a"
    with pytest.raises(RequestError, match="num_return_sequences is above 1"):
        next(pieces)
