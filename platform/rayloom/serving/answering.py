"""From a call to its outcome: refusals first, then the model; errors become problems."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from rayloom.errors import UserError
from rayloom.serving.calls import Call, ModelInfo, Outcome, Problem, ServedModel

logger = logging.getLogger(__name__)


async def answer(model: ServedModel, call: Call) -> Outcome:
    """What the model writes for a call, or why it does not.

    Nothing is raised but cancellation, which reaches the model: a call that nobody waits for stops.
    """
    refusal = _refusal(model.info, call)
    if refusal:
        return refusal
    try:
        return await model.complete(call)
    except Exception as error:
        return _problem(error)


def _problem(error: Exception) -> Problem:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return Problem(400, "invalid_request", f"{field}: {message}" if field else message)
    if isinstance(error, UserError):
        return Problem(400, "invalid_request", str(error))
    logger.error("generation failed", exc_info=error)
    return Problem(500, "internal", f"generation failed with {type(error).__name__}; the server's log has the details")


def _refusal(info: ModelInfo, call: Call) -> Problem | None:
    """Why the model's template cannot take the call: better said than ignored."""
    if call.asks_question and not info.answers_questions:
        message = f"'{info.name}' ({info.task}) has no prompt template for questions; use POST /generate"
    elif call.prompt.context is not None and not info.takes_context:
        message = f"the prompt template of '{info.name}' ({info.task}) has no place for a context; leave it out"
    else:
        return None
    return Problem(400, "invalid_request", message)
