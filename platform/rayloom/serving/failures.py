"""Every error as JSON: ours, and OpenAI's shape below `/v1`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from rayloom.config import nearest
from rayloom.serving.calls import Problem, ProblemType
from rayloom.serving.observing.records import record_of
from rayloom.serving.openai.answers import error_body
from rayloom.serving.responses import ErrorResponse
from rayloom.serving.shapes import shortened

logger = logging.getLogger(__name__)


def failure(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to a problem, which the request's record is told."""
    record_of(request).refuse(problem)
    headers = dict(headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    body = error_body(problem) if speaks_openai(request) else ErrorResponse.of(problem).model_dump()
    return JSONResponse(body, status_code=problem.status, headers=headers)


def speaks_openai(request: Request) -> bool:
    """Whether a request is for the OpenAI API."""
    return path_of(request.scope).startswith("/v1/")


def add_error_handlers(app: FastAPI, bodies: Mapping[str, type[BaseModel]]) -> None:
    """Answer errors of all kinds.

    Args:
        app: The application.
        bodies: The body of each route that has one; a misspelt field is answered with the nearest one.
    """

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        body = bodies.get(path_of(request.scope))
        # A misspelt field is also a missing one: say the first. Of what a value may be, what it comes nearest to.
        first = min(error.errors(), key=lambda each: (each["type"] != "extra_forbidden", -len(each["loc"])))
        message = describe_invalid(first, list(body.model_fields) if body else [])
        status = 400 if first["type"] == "json_invalid" or speaks_openai(request) else 422
        return failure(request, Problem(status, "invalid_request", message, param=_param(first)))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        kinds: dict[int, tuple[ProblemType, str]] = {
            404: ("not_found", f"no such path; this server has {', '.join(bodies)}, /health and /docs"),
            405: ("method_not_allowed", f"{request.method} is not possible here; see /docs"),
        }
        kind, message = kinds.get(error.status_code, ("invalid_request", str(error.detail)))
        return failure(request, Problem(error.status_code, kind, message), headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("request failed", exc_info=error)
        return failure(request, Problem(500, "internal", "the server failed; its log has the details"))


def describe_invalid(error: dict[str, Any], known: list[str]) -> str:
    """One sentence for the caller about a pydantic error in a request body.

    Args:
        error: One item of ``ValidationError.errors()``, its location starting with ``body``.
        known: Names of the body's fields.
    """
    location = _location(error)
    if error["type"] == "extra_forbidden":
        near = nearest(location[0], known) if len(location) == 1 else None
        return f"unknown field '{'.'.join(location)}'" + (f"; did you mean '{near}'?" if near else "")
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error.get('ctx', {}).get('error', 'cannot be read')}"
    if error["type"] == "missing":
        return f"'{'.'.join(location)}' is required" if location else "a JSON body is required"
    if error["type"] == "model_attributes_type" and not location:
        return "the body is to be a JSON object, sent with Content-Type: application/json"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message[0].lower()}{message[1:]}" if location else message


def _location(error: dict[str, Any]) -> list[str]:
    """Where a problem is, without pydantic's names of kinds (``list[TextPart]``)."""
    parts = [shortened(str(part)) for part in error["loc"][1:]]
    return [part for place, part in enumerate(parts) if place in (0, len(parts) - 1) or "[" not in part]


def _param(error: dict[str, Any]) -> str | None:
    location = _location(error)
    return location[0] if location and error["type"] != "json_invalid" else None


def path_of(scope: Scope) -> str:
    """The path of a request as routes know it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
