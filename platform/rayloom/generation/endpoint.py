"""A Rayloom server over HTTP: requests that are tried again when that makes sense, errors of our own kinds."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import tenacity

from rayloom.errors import RayloomError, RequestError, ServiceError

_AGAIN = (429, 502, 503)
"""Statuses of calls that were not begun: too many waiting, or nobody there."""
_MOST_WAIT_S = 60.0


class TryAgainError(ServiceError):
    """A call that came to nothing and may be repeated.

    Args:
        message: What happened.
        retry_after_s: When the server wants it to be repeated, in seconds; None if it does not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Endpoint:
    """One server.

    Args:
        url: Where it is, without a path.
        api_key: Sent along, if given.
        timeout_s: Seconds without a word from the server after which a call has failed.
        max_tries: How often a call is sent before it has failed.
        transport: Of the requests, for tests.
        async_transport: Of those from asyncio, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 180.0,
        max_tries: int = 6,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self._max_tries, self._async_transport = url.rstrip("/"), max_tries, async_transport
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            "timeout": httpx.Timeout(timeout_s, connect=10.0),
        }
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(**self._options, limits=limits, transport=transport)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a body, as JSON.

        Raises:
            RequestError: The server refuses the body, or the API key.
            ServiceError: It is not there, not ready, too busy, or has failed.
        """
        for attempt in tenacity.Retrying(**self._policy()):
            with attempt, _told(self.url):
                response = self._client.post(path, json=body)
                _check(response, self.url)
        return response.json()

    async def post_async(self, path: str, body: Mapping[str, Any]) -> Any:
        """As `post`. Cancelling the task makes the server drop the call."""
        async with httpx.AsyncClient(**self._options, transport=self._async_transport) as client:
            async for attempt in tenacity.AsyncRetrying(**self._policy()):
                with attempt, _told(self.url):
                    response = await client.post(path, json=body)
                    _check(response, self.url)
            return response.json()

    def events(self, path: str, body: Mapping[str, Any]) -> Events:
        """What the server sends while it answers. It has begun when this returns.

        Raises:
            RequestError, ServiceError: As `post`.
        """
        for attempt in tenacity.Retrying(**self._policy()):
            with attempt, _told(self.url):
                response = self._client.send(self._client.build_request("POST", path, json=body), stream=True)
                if response.status_code >= 400:
                    response.read()
                    _check(response, self.url)
        return Events(response, self.url)

    def _policy(self) -> dict[str, Any]:
        return {
            "retry": tenacity.retry_if_exception_type(TryAgainError),
            "stop": tenacity.stop_after_attempt(self._max_tries),
            "wait": _wait_s,
            "reraise": True,
        }


class Events:
    """JSON values of a stream of server-sent events. Closing it makes the server drop the call.

    Args:
        response: Open, and not read yet.
        url: Of the server, for messages.
    """

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response, self._url = response, url
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next value.

        Raises:
            ServiceError: The server, or the way to it, broke.
        """
        data = self._next_data()
        if data == "[DONE]":
            self.close()
            raise StopIteration
        value: dict[str, Any] = {} if data is None else json.loads(data)
        if data is None or "error" in value:
            self.close()
            raise _error(500, value or {"error": {"message": "the connection was lost amid an answer"}}, self._url)
        return value

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _next_data(self) -> str | None:
        with _told(self._url):
            return next((line.removeprefix("data: ") for line in self._lines if line.startswith("data: ")), None)


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Errors of the network as errors of ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError) as error:
        raise TryAgainError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    except httpx.TimeoutException as error:
        raise ServiceError(f"{url} does not answer in time") from error
    except httpx.HTTPError as error:
        raise ServiceError(f"{url}: {error or type(error).__name__}") from error


def _check(response: httpx.Response, url: str) -> None:
    if response.status_code < 400:
        return
    try:
        body = response.json()
    except ValueError:
        body = {}
    error = _error(response.status_code, body, url)
    if response.status_code in _AGAIN:
        raise TryAgainError(str(error), _retry_after_s(response))
    raise error


def _error(status: int, body: Any, url: str) -> RayloomError:
    told = body.get("error", {}) if isinstance(body, dict) else {}
    message = told.get("message") or f"status {status}"
    if status in (401, 403):
        return RequestError(f"{url} refuses the API key: {message}")
    is_callers = 400 <= status < 500 and status not in (408, 429, 499)
    return RequestError(message) if is_callers else ServiceError(f"{url}: {message}")


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(float(response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):
        return None


def _wait_s(state: tenacity.RetryCallState) -> float:
    """As long as the server says, and a bit more, so that all who were turned away do not come back at once."""
    error = state.outcome.exception() if state.outcome else None
    told_s = error.retry_after_s if isinstance(error, TryAgainError) else None
    if told_s is None:
        backoff_s = min(0.5 * 2.0 ** (state.attempt_number - 1), _MOST_WAIT_S)
        return random.uniform(0.0, backoff_s)
    told_s = min(told_s, _MOST_WAIT_S)
    return told_s + random.uniform(0.0, 0.25 * max(told_s, 1.0))
