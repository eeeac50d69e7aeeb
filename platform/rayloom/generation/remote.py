"""`TextGenerator` of a model that a server holds: `TextGenerator(endpoint=…)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from rayloom.config import GenerationConfig
from rayloom.data import PromptInput
from rayloom.errors import RequestError
from rayloom.generation.endpoint import Endpoint, Events
from rayloom.generation.parameters import refuse_unknown
from rayloom.generation.text_generator import TextGenerator, asked_for
from rayloom.generation.types import GeneratedSequence, GenerationOutput, TokenLogprob


class RemoteTextGenerator(TextGenerator):
    """Writes text with a model behind `rayloom serve` or a Serve application.

    It has the methods of `TextGenerator`. Parameters are checked by the server, and their defaults are the server's.

    Args:
        path_or_name: Name of the model, where the server has several.
        endpoint: URL of the server, such as ``http://127.0.0.1:8000``.
        api_key: Key of the server, if it wants one.
        options: None: device, precision and the like are the server's own.

    Raises:
        RequestError: Something is given that only a local model has.
    """

    def __init__(
        self,
        path_or_name: str | Path | None = None,
        *,
        endpoint: str | Endpoint | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        if options:
            raise RequestError(f"{next(iter(options))} is the server's own: leave it out with an endpoint")
        assert endpoint is not None
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint, api_key=api_key)
        self.name = self.endpoint.url
        self._asked_model = {} if path_or_name is None else {"model": str(path_or_name)}

    def close(self) -> None:
        """Close all connections."""
        self.endpoint.close()

    def stream(
        self,
        text: str = "",
        *,
        context: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        **params: Any,
    ) -> Iterator[str]:
        """See `TextGenerator`. Abandoning the iterator makes the server stop."""
        if _num_wanted(params) > 1:
            raise RequestError("num_return_sequences cannot be streamed: leave it out, or do not stream")
        body = _body(asked_for(text, context, messages), params) | self._asked_model | {"stream": True}
        body.pop("logprobs", None)  # pieces of text show none, as a local stream's; the server would refuse them
        return _pieces(self.endpoint.events("/generate", body))

    def run(
        self, inputs: Sequence[PromptInput], params: Mapping[str, Any] | None = None, *, batch_size: int = 16
    ) -> list[GenerationOutput]:
        """See `TextGenerator`; as many requests are in flight as ``batch_size`` says."""
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, not {batch_size}")
        bodies = [self._whole(asked, params) for asked in inputs]
        pool = ThreadPoolExecutor(max(min(batch_size, len(bodies)), 1), thread_name_prefix="rayloom-remote")
        try:
            return [_output(found) for found in pool.map(lambda body: self.endpoint.post("/generate", body), bodies)]
        finally:
            pool.shutdown(cancel_futures=True)

    async def run_async(self, asked: PromptInput, params: Mapping[str, Any] | None = None) -> GenerationOutput:
        """See `TextGenerator`."""
        return _output(await self.endpoint.post_async("/generate", self._whole(asked, params)))

    def parameters(self, params: Mapping[str, Any]) -> GenerationConfig:
        """What is given, with neutral values for the rest: the server's defaults are not known here."""
        refuse_unknown(params)
        return GenerationConfig.model_construct(**{**params, "num_return_sequences": _num_wanted(params)})

    def request(self, asked: PromptInput, config: GenerationConfig) -> NoReturn:
        """Not available: the server encodes prompts."""
        raise RequestError("only the server has the tokenizer: ask it with generate, stream or run")

    def _whole(self, asked: PromptInput, params: Mapping[str, Any] | None) -> dict[str, Any]:
        return _body(asked, params or {}) | self._asked_model | {"details": True}

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("encoder", "generator", "template", "family", "device", "precision", "artifact", "defaults"):
            raise RequestError(f"a remote model has no {name}: open it where it is")
        raise AttributeError(name)

    @property
    def model(self) -> NoReturn:
        """Not available."""
        raise RequestError("a remote model has no model: open it where it is")


def _num_wanted(params: Mapping[str, Any]) -> int:
    wanted: int = params.get("num_return_sequences") or params.get("num_generations") or 1
    return wanted


def _body(asked: PromptInput, params: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unknown(params)
    body = {name: value for name, value in params.items() if value is not None}
    if asked.prefix is not None:
        body["prefix"] = asked.prefix
    if asked.messages is not None:
        return body | {"messages": [dict(message) for message in asked.messages]}
    return body | {"prompt": asked.text} | ({} if asked.context is None else {"context": asked.context})


def _output(found: dict[str, Any]) -> GenerationOutput:
    details = found["details"]
    scores = found.get("logprobs") or [None] * len(details["answers"])
    sequences = [
        GeneratedSequence(
            answer["token_ids"],
            answer["text"],
            answer["finish_reason"],
            answer.get("score"),
            None if tokens is None else [_logprob(token) for token in tokens],
        )
        for answer, tokens in zip(details["answers"], scores, strict=True)
    ]
    return GenerationOutput(details["prompt_ids"], sequences)


def _logprob(token: dict[str, Any]) -> TokenLogprob:
    top = tuple((number, value) for number, value in token["top"])
    return TokenLogprob(token["token_id"], token["token"], token["logprob"], top)


def _pieces(events: Events) -> Iterator[str]:
    for event in events:
        if event.get("index", 0) > 0:
            events.close()
            raise RequestError("the server's own num_return_sequences is above 1, which cannot be streamed: give 1")
        if "text" in event:
            yield event["text"]
