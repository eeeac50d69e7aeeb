"""What a caller may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    request_timeout_s: float
    max_prompt_chars: int
    max_sequences: int
    max_prompts: int = 128
    max_in_flight: int | None = None
    max_body_bytes: int = 8 * 2**20


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
    return None


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
