"""From a batch of unlike calls to one outcome each. Pure but for the model that it drives."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from rayloom.errors import UserError
from rayloom.serving.calls import Call, ModelInfo, Outcome, Problem, ServedModel

logger = logging.getLogger(__name__)


def run_batch(model: ServedModel, calls: Sequence[Call]) -> list[Outcome]:
    """Outcomes of the calls, in their order. Calls with equal parameters are generated together.

    Nothing is raised: a call that fails has a `Problem`, and does not take the others along.
    """
    outcomes: dict[int, Outcome] = {}
    groups: dict[str, list[int]] = {}
    for index, call in enumerate(calls):
        refusal = _refusal(model.info, call)
        if refusal:
            outcomes[index] = refusal
        else:
            groups.setdefault(_group_key(call), []).append(index)
    for indices in groups.values():
        outcomes |= dict(zip(indices, _run_group(model, [calls[index] for index in indices]), strict=True))
    return [outcomes[index] for index in range(len(calls))]


def _group_key(call: Call) -> str:
    # Values come from JSON; the key keeps true, 1 and 1.0 apart, which compare equal in Python.
    return json.dumps(call.parameters, sort_keys=True)


def _run_group(model: ServedModel, calls: Sequence[Call]) -> list[Outcome]:
    try:
        completions = model.complete([call.prompt for call in calls], calls[0].parameters)
    except Exception as error:
        if len(calls) == 1:
            return [_problem(error)]
        # One bad prompt fails its whole group: every call gets its own try.
        return [outcome for call in calls for outcome in _run_group(model, [call])]
    assert len(completions) == len(calls), "one completion per prompt"
    return list(completions)


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
