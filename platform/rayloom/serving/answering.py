"""From a call to its outcome: refusals first, then the model; errors become problems."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pydantic import ValidationError

from rayloom.errors import RequestError
from rayloom.serving.calls import Call, Event, ModelInfo, Outcome, Problem, TextCall, Tokens
from rayloom.serving.protocols import ServedModel
from rayloom.serving.shapes import shortened

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
        return problem_of(error)


async def answer_in_parts(model: ServedModel, call: Call) -> AsyncGenerator[Event]:
    """As `answer`, as it is written. Closing it reaches the model."""
    refusal = _refusal(model.info, call)
    if refusal:
        yield refusal
        return
    try:
        async with aclosing(model.stream(call)) as events:
            async for event in events:
                yield event
    except Exception as error:
        yield problem_of(error)


def tokens_of(model: ServedModel, call: TextCall) -> Tokens | Problem:
    """A text's tokens or the tokens' text, or why there are none."""
    try:
        return unknown_model(model.info, call.model) or model.tokens(call)
    except Exception as error:
        return problem_of(error)


def problem_of(error: Exception) -> Problem:
    """What a caller is told of an error: all of their own mistakes, nothing of ours.

    Nor of the operator's: an adapter that is gone from the server's disk is a `UserError`, too, but not this user's.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return Problem(400, "invalid_request", f"{field}: {message}" if field else message, param=field or None)
    if isinstance(error, RequestError):
        return Problem(400, "invalid_request", str(error))
    logger.error("generation failed", exc_info=error)
    return Problem(500, "internal", f"generation failed with {type(error).__name__}; the server's log has the details")


def unknown_model(info: ModelInfo, name: str | None) -> Problem | None:
    """Why a call for a model of this name is not answered here."""
    if info.named(name) is not None:
        return None
    return model_not_found(name or "", [info.name, *(adapter.name for adapter in info.adapters)])


def model_not_found(name: str, known: Sequence[str]) -> Problem:
    """What a call for an unknown model is told."""
    quoted = [f"'{each}'" for each in known]
    listed = f"{', '.join(quoted[:-1])} and {quoted[-1]}" if len(quoted) > 1 else quoted[0]
    message = f"the model '{shortened(name)}' does not exist here; this server has {listed}"
    return Problem(404, "model_not_found", message, param="model")


def _refusal(info: ModelInfo, call: Call) -> Problem | None:
    """Why the call is for another model, or one that this model's template cannot take: better said than ignored."""
    if unknown := unknown_model(info, call.model):
        return unknown
    info = info.named(call.model) or info
    if call.asks_question and not info.answers_questions:
        message = f"'{info.name}' ({info.task}) has no prompt template for questions; use POST /generate"
    elif call.prompt.context is not None and not info.takes_context:
        message = f"the prompt template of '{info.name}' ({info.task}) has no place for a context; leave it out"
    else:
        return None
    return Problem(400, "invalid_request", message)
