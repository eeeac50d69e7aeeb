"""Routes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from rayloom.errors import RequestError
from rayloom.serving.answering import model_not_found, problem_of
from rayloom.serving.calls import Call, ModelInfo, Problem
from rayloom.serving.failures import failure
from rayloom.serving.front import EventStream, Front
from rayloom.serving.openai.answers import chat_body, completion_body
from rayloom.serving.openai.chunks import ChatChunks, Chunks, CompletionChunks
from rayloom.serving.openai.requests import ChatRequest, CompletionRequest, SharedRequest
from rayloom.serving.openai.responses import ChatBody, CompletionBody, ErrorBody, ModelBody, ModelList
from rayloom.serving.sse import written

_STATUSES = {
    400: "A parameter or prompt that cannot be honoured",
    401: "No good API key (where keys are asked for)",
    403: "The API key lacks a scope",
    404: "No such model",
    408: "The body came too slowly",
    413: "The prompt, or the body, is too long",
    429: "Too many calls are waiting, or the key has used up its minute",
    500: "The server failed",
    503: "Not ready",
    504: "No answer in time",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _STATUSES.items()
}
_STREAM: dict[str, dict[str, Any]] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for events


def add_routes(app: FastAPI, front: Front) -> None:
    """Add `/v1/models`, `/v1/completions` and `/v1/chat/completions`."""
    _add_models(app, front)

    @app.post(
        "/v1/completions",
        response_model=None,
        responses=_ERRORS | {200: {"model": CompletionBody, "content": _STREAM}},
        tags=["OpenAI"],
    )
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on from a prompt, which goes to the model as it is."""
        calls = _calls(body)
        if isinstance(calls, Problem):
            return failure(request, calls)
        if body.stream:
            chunks = CompletionChunks(**_shared(body), echo=body.echo, logprobs=body.logprobs is not None)
            return await _streamed(request, front, calls, chunks)
        done = await front.complete(request, calls)
        if isinstance(done, Problem):
            return failure(request, done)
        return JSONResponse(completion_body(done, echo=body.echo))

    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses=_ERRORS | {200: {"model": ChatBody, "content": _STREAM}},
        tags=["OpenAI"],
    )
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer in a conversation."""
        calls = _calls(body)
        if isinstance(calls, Problem):
            return failure(request, calls)
        if body.stream:
            return await _streamed(request, front, calls, ChatChunks(**_shared(body), logprobs=bool(body.logprobs)))
        done = await front.complete(request, calls)
        return failure(request, done) if isinstance(done, Problem) else JSONResponse(chat_body(done[0]))


def _add_models(app: FastAPI, front: Front) -> None:
    errors: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (400, 401, 429, 503, 504)}

    @app.get(
        "/v1/models",
        response_model=ModelList,
        responses=errors,
        tags=["OpenAI"],
    )
    async def models(request: Request) -> ModelList | JSONResponse:
        """What is served: models, their adapters, and names that stand for several."""
        found = await front.models(request)
        return failure(request, found) if isinstance(found, Problem) else ModelList(data=_listed(found))

    @app.get(
        "/v1/models/{model:path}", response_model=ModelBody, responses=errors | {404: _ERRORS[404]}, tags=["OpenAI"]
    )
    async def model(request: Request, model: str) -> ModelBody | JSONResponse:
        """One served model."""
        found = await front.models(request)
        if isinstance(found, Problem):
            return failure(request, found)
        listed = {each.id: each for each in _listed(found)}
        return listed[model] if model in listed else failure(request, model_not_found(model, list(listed)))


async def _streamed(request: Request, front: Front, calls: list[Call], chunks: Chunks) -> Response:
    lists = await front.stream(request, calls)
    if isinstance(lists, Problem):
        return failure(request, lists)
    return EventStream(written(lists, chunks), lists)


def _calls(body: CompletionRequest | ChatRequest) -> list[Call] | Problem:
    try:
        return body.calls()
    except RequestError as error:
        return problem_of(error)


def _shared(body: SharedRequest) -> dict[str, Any]:
    includes_usage = body.stream_options is not None and body.stream_options.include_usage
    return {"num_answers": body.num_answers, "includes_usage": includes_usage}


def _listed(models: Sequence[ModelInfo]) -> list[ModelBody]:
    every = [each for model in models for each in (model, *model.adapters)]
    return [
        ModelBody(id=info.name, created=info.created, max_model_len=info.max_positions, parent=info.parent)
        for info in every
    ]
