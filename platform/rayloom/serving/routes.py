"""The HTTP face: our own routes, OpenAI's, and every error as JSON. Knows a `Backend`, and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel

from rayloom.serving.access import Access, Guard, describe_security
from rayloom.serving.arms import ARM_HEADER, ArmHeader
from rayloom.serving.bodies import BodyLimit
from rayloom.serving.calls import Completion, Problem
from rayloom.serving.events import OwnEvents
from rayloom.serving.failures import add_error_handlers, failure
from rayloom.serving.front import TIMEOUT_HEADER, EventStream, Front
from rayloom.serving.limits import Limits
from rayloom.serving.observing.observer import ID_HEADER, Observer, Watched
from rayloom.serving.observing.routes import add_metrics
from rayloom.serving.openai.requests import ChatRequest, CompletionRequest
from rayloom.serving.openai.routes import add_routes
from rayloom.serving.protocols import Backend
from rayloom.serving.responses import (
    AnswerResponse,
    DetokenizeResponse,
    ErrorResponse,
    GenerateResponse,
    HealthResponse,
    ReadyResponse,
    TokenizeResponse,
)
from rayloom.serving.schemas import AnswerRequest, DetokenizeRequest, GenerateRequest, TokenizeRequest
from rayloom.serving.sse import written

__all__ = ["Limits", "create_app"]

_BODIES: dict[str, type[BaseModel]] = {
    "/generate": GenerateRequest,
    "/answer": AnswerRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_STATUSES = {
    400: "A parameter or prompt that the model cannot honour",
    401: "No good API key (where keys are asked for)",
    403: "The API key lacks a scope",
    404: "No such model",
    408: "The body came too slowly",
    413: "The prompt, or the body, is too long",
    422: "A field is unknown, missing or out of range",
    429: "Too many calls are waiting, or the key has used up its minute",
    500: "The server failed",
    503: "Not ready",
    504: "No answer in time",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _STATUSES.items()
}
_STREAM: dict[str, dict[str, Any]] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for events


def create_app(
    backend: Backend,
    limits: Limits,
    *,
    access: Access | None = None,
    cors_origins: Sequence[str] = (),
    observer: Observer | None = None,
) -> FastAPI:
    """The application: ``/v1/…``, ``/generate``, ``/answer``, ``/tokenize``, ``/health`` and the like, and ``/docs``.

    Args:
        backend: What writes the texts.
        limits: What a caller may ask for.
        access: Asks every caller for a key; anyone may come in where not given.
        cors_origins: Web sites whose pages may call from a browser; ``*`` for all.
        observer: Keeps the books of requests; one with metrics alone where not given.
    """
    observer = observer or Observer()
    app = FastAPI(
        title="Rayloom",
        summary="Text generation with a fine-tuned model.",
        version="1",
        telemetry=observer.telemetry(),
    )
    app.add_middleware(ArmHeader)
    app.add_middleware(BodyLimit, most=limits.max_body_bytes, within_s=limits.body_timeout_s)
    if access is not None:
        app.add_middleware(Guard, access=access)
        describe_security(app)
    if cors_origins:
        _allow_origins(app, cors_origins)  # outside of the guard: browsers ask beforehand, without a key
    app.add_middleware(Watched, observer=observer)
    add_error_handlers(app, _BODIES)
    front = Front(backend, limits, access.rates if access else None)

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    _add_states(app, backend)
    add_metrics(app, backend, observer)
    add_routes(app, front)
    _add_writing(app, front)
    _add_tokens(app, front)
    return app


def _allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", TIMEOUT_HEADER, ID_HEADER],
        expose_headers=["Retry-After", ID_HEADER, ARM_HEADER],
    )


def _add_states(app: FastAPI, backend: Backend) -> None:
    unready = Problem(503, "not_ready", "no replica takes calls yet", retry_after_s=5)

    @app.get(
        "/health",
        response_model=HealthResponse,
        response_model_exclude_none=True,
        responses={503: _ERRORS[503]},
    )
    async def health(request: Request) -> HealthResponse | JSONResponse:
        """Whether the model takes calls, and what is served."""
        state = await backend.health()
        return failure(request, unready) if state.status == "not_ready" else HealthResponse.of(state)

    @app.get("/ready", response_model=ReadyResponse, responses={503: _ERRORS[503]})
    async def ready(request: Request) -> ReadyResponse | JSONResponse:
        """Whether to send calls here. A service that is scaled to zero is ready: a call wakes it."""
        state = await backend.health()
        return failure(request, unready) if state.status == "not_ready" else ReadyResponse()


def _add_writing(app: FastAPI, front: Front) -> None:
    async def answered(request: Request, body: GenerateRequest | AnswerRequest) -> Completion | Response:
        call = body.call()
        if body.stream:
            lists = await front.stream(request, [call])
            if isinstance(lists, Problem):
                return failure(request, lists)
            return EventStream(written(lists, OwnEvents()), lists)
        done = await front.complete(request, [call])
        return failure(request, done) if isinstance(done, Problem) else done[0]

    ok: dict[int | str, dict[str, Any]] = {200: {"content": _STREAM}}

    @app.post("/generate", response_model=GenerateResponse, response_model_exclude_none=True, responses=ok | _ERRORS)
    async def generate(request: Request, body: GenerateRequest) -> GenerateResponse | Response:
        """Write text for a prompt. The prompt fills the template that the model was trained with."""
        done = await answered(request, body)
        return done if isinstance(done, Response) else GenerateResponse.of(done, details=body.details)

    @app.post("/answer", response_model=AnswerResponse, response_model_exclude_none=True, responses=ok | _ERRORS)
    async def answer(request: Request, body: AnswerRequest) -> AnswerResponse | Response:
        """Answer a question, from a context if there is one."""
        done = await answered(request, body)
        return done if isinstance(done, Response) else AnswerResponse.of(done, details=body.details)


def _add_tokens(app: FastAPI, front: Front) -> None:
    @app.post("/tokenize", response_model=TokenizeResponse, responses=_ERRORS)
    async def tokenize(request: Request, body: TokenizeRequest) -> TokenizeResponse | JSONResponse:
        """Tokens of a prompt, as the model sees it."""
        found = await front.tokens(request, body.call())
        if isinstance(found, Problem):
            return failure(request, found)
        ids = list(found.token_ids)
        return TokenizeResponse(tokens=ids, count=len(ids), max_model_len=found.max_positions)

    @app.post("/detokenize", response_model=DetokenizeResponse, responses=_ERRORS)
    async def detokenize(request: Request, body: DetokenizeRequest) -> DetokenizeResponse | JSONResponse:
        """Text of tokens."""
        found = await front.tokens(request, body.call())
        return failure(request, found) if isinstance(found, Problem) else DetokenizeResponse(prompt=found.text)
