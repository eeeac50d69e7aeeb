"""What a caller may ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayloom.config import GenerationConfig
from rayloom.serving.calls import Call, Problem, Prompt


@dataclass(frozen=True)
class Limits:
    """What a caller may ask for.

    Attributes:
        request_timeout_s: Seconds until an unanswered call ends with 504.
        max_prompt_chars: Longest prompt, question or context, in characters; longest conversation as well.
        max_sequences: Most beams, and most texts per prompt.
        max_prompts: Most prompts of one request.
        max_in_flight: Calls in flight beyond which others are turned away; None for no bound.
        max_body_bytes: Largest body of a request.
        body_timeout_s: Seconds that a body may take to come.
        max_constraint_chars: Most characters of whatever holds an answer to something (schema, expression, choice,
            words, stop strings, prefix), each. Some cost more than their length to prepare.
        max_listed: Most choices, or biased tokens.
        max_words: Most required or forbidden words, or stop strings: each is looked for at every step.
    """

    request_timeout_s: float
    max_prompt_chars: int
    max_sequences: int
    max_prompts: int = 128
    max_in_flight: int | None = None
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 30.0
    max_constraint_chars: int = 20_000
    max_listed: int = 1024
    max_words: int = 64


_CONSTRAINTS = ("stop_strings", "required_words", "forbidden_words", "choice", "regex", "json_schema", "prefix",
                "logit_bias", "eos_token_id")  # fmt: skip
_LISTED = ("choice", "logit_bias")


def refusal(calls: Sequence[Call], limits: Limits) -> Problem | None:
    """Why calls that belong together are more than this server takes."""
    return _too_many(len(calls), limits.max_prompts) or next(
        filter(None, (_refused(call, limits) for call in calls)), None
    )


def _refused(call: Call, limits: Limits) -> Problem | None:
    """Why a call is more than this server takes."""
    if problem := too_long(call.prompt, limits):
        return problem
    parameters = GenerationConfig.model_construct(**call.parameters)
    for name, wanted in (
        ("num_beams", parameters.num_beams),
        ("num_return_sequences", parameters.num_return_sequences),
        ("best_of", call.best_of or 1),
    ):
        if wanted > limits.max_sequences:
            message = f"{name} {wanted} is too many; this server takes {limits.max_sequences}"
            return Problem(400, "invalid_request", message, param=name)
    return next(filter(None, (_too_much(name, call.parameters.get(name), limits) for name in _CONSTRAINTS)), None)


def _too_much(name: str, value: Any, limits: Limits) -> Problem | None:
    """Why a constraint is larger than this server takes."""
    if value is None:
        return None
    most = limits.max_listed if name in _LISTED else limits.max_words
    if (isinstance(value, list) or name == "logit_bias") and len(value) > most:
        message = f"{name} has {len(value)} entries; this server takes {most}"
        return Problem(400, "invalid_request", message, param=name)
    num_chars = _size(value)
    if num_chars <= limits.max_constraint_chars:
        return None
    message = f"{name} has {num_chars} characters; this server takes {limits.max_constraint_chars}"
    return Problem(400, "invalid_request", message, param=name)


def _size(value: Any) -> int:
    """Characters of a text, of all texts of a list, or of a schema as JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(json.dumps(value))


def too_long(prompt: Prompt, limits: Limits) -> Problem | None:
    """Why a prompt is longer than this server takes. Tokens count as characters: each is one at least."""
    longest = _num_chars(prompt)
    if longest <= limits.max_prompt_chars:
        return None
    unit = "characters" if prompt.token_ids is None else "tokens"
    message = f"{longest} {unit} are too many; this server takes {limits.max_prompt_chars} per text"
    return Problem(413, "prompt_too_long", message)


def _too_many(num_prompts: int, most: int) -> Problem | None:
    if num_prompts <= most:
        return None
    message = f"{num_prompts} prompts are too many; this server takes {most} in one request"
    return Problem(400, "invalid_request", message, param="prompt")


def _num_chars(prompt: Prompt) -> int:
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    if prompt.messages is not None:
        return sum(len(message["content"]) for message in prompt.messages)
    return max(len(prompt.text), len(prompt.context or ""))
