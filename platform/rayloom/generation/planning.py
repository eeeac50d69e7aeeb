"""Which requests may share a batch: integers and configs only, no tensors.

A request gets the same tokens whatever else is in its batch. What `transformers.generate` counts from the
padded prompt (``max_length``, ``min_length``) is therefore turned into a number of new tokens per request;
parameters that look at the prompt's tokens (and so at its padding) only join prompts of equal length.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.generation.types import GenerationRequest

DEFAULT_NEW_TOKENS = 128
_LENGTH_FIELDS = {"max_new_tokens", "min_new_tokens", "max_length", "min_length"}


@dataclass(frozen=True)
class Window:
    """What a model can hold.

    Attributes:
        seq2seq: Whether answers are written by a decoder of their own.
        max_positions: Longest sequence of the model (causal: prompt and answer together), None for no bound.
        default_new_tokens: New tokens where a request names no length.
    """

    seq2seq: bool
    max_positions: int | None
    default_new_tokens: int = DEFAULT_NEW_TOKENS


@dataclass(frozen=True)
class Lengths:
    """How many tokens a request may and must generate."""

    max_new_tokens: int
    min_new_tokens: int


@dataclass(frozen=True)
class Batch:
    """Requests that one call of ``model.generate`` answers.

    Attributes:
        rows: Indices into the list of requests.
        lengths: Common to all rows.
    """

    rows: tuple[int, ...]
    lengths: Lengths


def request_lengths(request: GenerationRequest, window: Window) -> Lengths:
    """How many tokens a request may generate, from whichever of the four length parameters it gives.

    Raises:
        RequestError: The prompt leaves no room, or the least length exceeds the most.
    """
    config = request.config
    held = len(request.prefix_ids) + (1 if window.seq2seq else len(request.prompt_ids))
    most = window.default_new_tokens
    if config.max_new_tokens is not None:
        most = config.max_new_tokens
    elif config.max_length is not None:
        most = config.max_length - held
        if most < 1:
            what = "the answer's prefix and start token" if window.seq2seq else "the prompt"
            raise RequestError(
                f"max_length {config.max_length} leaves no room: {what} already takes {held} tokens; "
                "raise it, or give max_new_tokens"
            )
    least = config.min_new_tokens
    if least is None:
        least = max(0, (config.min_length or 0) - held)
    if least > most:
        raise RequestError(f"at least {least} new tokens are asked for, but at most {most} (min_… exceeds max_…)")
    room = _room(request, window, held)
    if room is not None and least > room:
        raise RequestError(
            f"at least {least} new tokens are asked for, but only {room} of the model's "
            f"{window.max_positions} positions are left after a prompt of {held} tokens"
        )
    return Lengths(most if room is None else min(most, room), least)


def plan_batches(requests: Sequence[GenerationRequest], window: Window, *, batch_size: int) -> list[Batch]:
    """Group requests into batches of equal parameters and similar prompt length.

    Raises:
        RequestError: See `request_lengths`.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[_group(request, request_lengths(request, window), window)].append(index)
    batches = []
    for rows in groups.values():
        rows.sort(key=lambda row: len(requests[row].prompt_ids))
        lengths = request_lengths(requests[rows[0]], window)
        size = 1 if _runs_alone(requests[rows[0]].config) else batch_size
        batches += [Batch(tuple(rows[at : at + size]), lengths) for at in range(0, len(rows), size)]
    return batches


def _room(request: GenerationRequest, window: Window, held: int) -> int | None:
    if window.max_positions is None:
        return None
    if window.seq2seq and len(request.prompt_ids) > window.max_positions:
        raise RequestError(_too_long(len(request.prompt_ids), window.max_positions))
    room = window.max_positions - held
    if room < 1:
        raise RequestError(_too_long(held, window.max_positions))
    return room


def _too_long(num_tokens: int, max_positions: int) -> str:
    return f"the prompt has {num_tokens} tokens, too many for the model's {max_positions} positions: shorten it"


def _group(request: GenerationRequest, lengths: Lengths, window: Window) -> tuple[object, ...]:
    config = request.config
    parameters = json.dumps(config.model_dump(mode="json", exclude=_LENGTH_FIELDS), sort_keys=True)
    # The decoder of a seq2seq model is not padded on the left.
    prefix = len(request.prefix_ids) if window.seq2seq else 0
    exact = len(request.prompt_ids) + len(request.prefix_ids) if _sees_padding(config) else 0
    return parameters, lengths, prefix, exact


def _sees_padding(config: GenerationConfig) -> bool:
    return bool(config.no_repeat_ngram_size) or config.encoder_repetition_penalty not in (None, 1.0)


def _runs_alone(config: GenerationConfig) -> bool:
    # One seed must give one text whatever else is generated; and one prompt's time is not another's.
    return (config.do_sample and config.seed is not None) or config.max_time is not None
