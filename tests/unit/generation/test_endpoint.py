"""Requests to a server that is busy, away or at odds with us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import tenacity

from rayloom.errors import RequestError, ServiceError
from rayloom.generation.endpoint import Endpoint, TryAgainError, _wait_s

Answers = list[httpx.Response | Exception]


def busy(status: int = 429) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "too many"}}, headers={"Retry-After": "0"})


def serving(answers: Answers, seen: list[httpx.Request]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return answer


def endpoint_of(*answers: httpx.Response | Exception, max_tries: int = 4) -> tuple[Endpoint, list[httpx.Request]]:
    seen: list[httpx.Request] = []
    transport = httpx.MockTransport(serving(list(answers), seen))
    endpoint = Endpoint("http://there/", api_key="k", max_tries=max_tries, transport=transport,
                        async_transport=transport)  # fmt: skip
    return endpoint, seen


def post(endpoint: Endpoint, *, is_async: bool) -> Any:
    if is_async:
        return asyncio.run(endpoint.post_async("/generate", {"prompt": "x"}))
    return endpoint.post("/generate", {"prompt": "x"})


@pytest.mark.parametrize("is_async", [False, True])
def test_a_busy_server_is_asked_again_and_the_key_sent_along(is_async: bool) -> None:
    endpoint, seen = endpoint_of(busy(), busy(503), httpx.Response(200, json={"text": "y"}))
    assert post(endpoint, is_async=is_async) == {"text": "y"}
    assert len(seen) == 3
    assert {request.headers["authorization"] for request in seen} == {"Bearer k"}
    assert json.loads(seen[0].content) == {"prompt": "x"}


@pytest.mark.parametrize("is_async", [False, True])
def test_patience_ends(is_async: bool) -> None:
    endpoint, seen = endpoint_of(*(busy() for _ in range(4)))
    with pytest.raises(ServiceError, match="http://there: too many"):
        post(endpoint, is_async=is_async)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (httpx.Response(400, json={"error": {"message": "wrong"}}), RequestError, "^wrong$"),
        (httpx.Response(422, json={"error": {"message": "wrong"}}), RequestError, "^wrong$"),
        (httpx.Response(401, json={"error": {"message": "who?"}}), RequestError, "refuses the API key: who"),
        (httpx.Response(500, text="<html>"), ServiceError, "status 500"),
        (httpx.Response(504, json={"error": {"message": "late"}}), ServiceError, "http://there: late"),
        (httpx.ReadTimeout("x"), ServiceError, "does not answer in time"),
    ],
)
def test_what_would_come_to_the_same_is_not_repeated(
    answer: httpx.Response | Exception, error: type[Exception], message: str
) -> None:
    endpoint, seen = endpoint_of(answer)
    with pytest.raises(error, match=message):
        post(endpoint, is_async=False)
    assert len(seen) == 1


def test_streams_begin_after_a_while_too_and_end_with_done() -> None:
    stream = 'data: {"text": "a"}\n\ndata: {"text": "b"}\n\ndata: [DONE]\n\n'
    endpoint, seen = endpoint_of(busy(), httpx.Response(200, text=stream))
    assert list(endpoint.events("/generate", {})) == [{"text": "a"}, {"text": "b"}]
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("rest", "message"), [('data: {"error": {"message": "broke"}}\n\n', "broke"), ("", "lost amid an answer")]
)
def test_streams_that_break_are_not_taken_for_whole(rest: str, message: str) -> None:
    endpoint, _ = endpoint_of(httpx.Response(200, text='data: {"text": "a"}\n\n' + rest))
    events = endpoint.events("/generate", {})
    assert next(events) == {"text": "a"}
    with pytest.raises(ServiceError, match=message):
        next(events)


def wait_after(error: Exception, attempt: int) -> float:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    state.outcome = tenacity.Future(attempt)
    state.outcome.set_exception(error)
    return _wait_s(state)


def test_waits_are_the_servers_with_jitter_on_top() -> None:
    told = [wait_after(TryAgainError("x", 8.0), 1) for _ in range(50)]
    assert all(8.0 <= each <= 10.0 for each in told)
    assert len(set(told)) > 1
    assert wait_after(TryAgainError("x", 10_000.0), 1) <= 75.0
    guessed = [wait_after(TryAgainError("x"), 5) for _ in range(50)]
    assert all(0.0 <= each <= 8.0 for each in guessed)
    assert max(guessed) > 1.0
