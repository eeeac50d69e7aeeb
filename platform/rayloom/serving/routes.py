"""The HTTP face: routes, limits, and every error as JSON. Knows a `Backend`, and no Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from rayloom.config import GenerationConfig
from rayloom.serving.calls import Backend, Outcome, Problem, ProblemType
from rayloom.serving.schemas import (
    AnswerRequest,
    AnswerResponse,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    GenerationParameters,
    HealthResponse,
    describe_invalid,
)

logger = logging.getLogger(__name__)

_BODIES: dict[str, type[GenerationParameters]] = {"/generate": GenerateRequest, "/answer": AnswerRequest}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "A parameter or prompt that the model cannot honour"},
    413: {"model": ErrorResponse, "description": "The prompt is too long"},
    422: {"model": ErrorResponse, "description": "A field is unknown, missing or out of range"},
    503: {"model": ErrorResponse, "description": "Not ready, or too many calls are waiting"},
    504: {"model": ErrorResponse, "description": "No answer in time"},
}


@dataclass(frozen=True)
class Limits:
    """What a caller may ask for.

    Attributes:
        request_timeout_s: Seconds until an unanswered call ends with 504.
        max_prompt_chars: Longest prompt, question or context, in characters.
        max_sequences: Most beams, and most texts per prompt.
    """

    request_timeout_s: float
    max_prompt_chars: int
    max_sequences: int


def create_app(backend: Backend, limits: Limits, *, title: str = "Rayloom") -> FastAPI:
    """The application: ``/generate``, ``/answer``, ``/health``, and ``/docs``.

    Args:
        backend: What writes the texts.
        limits: What a caller may ask for.
        title: Heading of the documentation page.
    """
    app = FastAPI(title=title, summary="Text generation with a fine-tuned model.", version="1")
    _add_error_handlers(app)

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get(
        "/health",
        response_model=HealthResponse,
        response_model_exclude_none=True,
        responses={503: _ERRORS[503]},
    )
    async def health() -> HealthResponse | JSONResponse:
        """Whether the model takes calls."""
        state = await backend.health()
        if state.status == "not_ready":
            return _failure(Problem(503, "not_ready", "no replica takes calls yet", retry_after_s=5))
        return HealthResponse.of(state)

    @app.post("/generate", response_model=GenerateResponse, response_model_exclude_none=True, responses=_ERRORS)
    async def generate(body: GenerateRequest) -> GenerateResponse | JSONResponse:
        """Write text for a prompt. The prompt fills the template that the model was trained with."""
        outcome = await _outcome(backend, body, limits)
        return _failure(outcome) if isinstance(outcome, Problem) else GenerateResponse.of(outcome)

    @app.post("/answer", response_model=AnswerResponse, response_model_exclude_none=True, responses=_ERRORS)
    async def answer(body: AnswerRequest) -> AnswerResponse | JSONResponse:
        """Answer a question, from a context if there is one."""
        outcome = await _outcome(backend, body, limits)
        return _failure(outcome) if isinstance(outcome, Problem) else AnswerResponse.of(outcome)

    return app


async def _outcome(backend: Backend, body: GenerateRequest | AnswerRequest, limits: Limits) -> Outcome:
    call = body.call()
    refusal = _refusal(body, [call.prompt.text, call.prompt.context or ""], limits)
    if refusal:
        return refusal
    try:
        async with asyncio.timeout(limits.request_timeout_s):
            return await backend.complete(call)
    except TimeoutError:
        return Problem(504, "timeout", f"no answer within {limits.request_timeout_s:g} s; ask for fewer tokens")


def _refusal(parameters: GenerationConfig, texts: Sequence[str], limits: Limits) -> Problem | None:
    longest = max(len(text) for text in texts)
    if longest > limits.max_prompt_chars:
        message = f"{longest} characters are too many; this server takes {limits.max_prompt_chars} per text"
        return Problem(413, "prompt_too_long", message)
    for name in ("num_beams", "num_return_sequences"):
        wanted = getattr(parameters, name)
        if wanted > limits.max_sequences:
            message = f"{name} {wanted} is too many; this server takes {limits.max_sequences}"
            return Problem(400, "invalid_request", message)
    return None


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        body = _BODIES.get(request.scope["path"].removeprefix(request.scope.get("root_path", "")))
        # A misspelt field is also a missing one: say the first.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        message = describe_invalid(first, list(body.model_fields) if body else [])
        return _failure(Problem(400 if first["type"] == "json_invalid" else 422, "invalid_request", message))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        kinds: dict[int, tuple[ProblemType, str]] = {
            404: ("not_found", f"no such path; this server has {', '.join(_BODIES)}, /health and /docs"),
            405: ("method_not_allowed", f"{request.method} is not possible here; see /docs"),
        }
        kind, message = kinds.get(error.status_code, ("invalid_request", str(error.detail)))
        return _failure(Problem(error.status_code, kind, message), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("request failed", exc_info=error)
        return _failure(Problem(500, "internal", "the server failed; its log has the details"))


def _failure(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = dict(headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return JSONResponse(ErrorResponse.of(problem).model_dump(), status_code=problem.status, headers=headers)
