"""What a generation request and its answer are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rayloom.config import GenerationConfig
from rayloom.engine import FinishReason


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, and how to go on from it.

    Attributes:
        prompt_ids: Token ids of the prompt (seq2seq: of the encoder's input).
        config: Generation parameters.
        prefix_ids: Token ids that the answer is forced to start with; part of the answer.
    """

    prompt_ids: list[int]
    config: GenerationConfig = field(default_factory=GenerationConfig)
    prefix_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of one generated token under the model itself, before penalties and warping.

    Attributes:
        token_id: The token.
        token: Its text.
        logprob: Natural logarithm of its probability.
        top: The likeliest tokens at this place with their log-probabilities, best first.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class GeneratedSequence:
    """One answer.

    Attributes:
        token_ids: The answer's tokens: a forced prefix included, end of sequence and padding left out.
        text: The answer; cut before a stop string.
        finish_reason: ``stop`` (end of sequence or stop string), ``length`` or ``time`` (``max_time``).
        score: Beam search: sum of log-probabilities over length ** length_penalty.
        logprobs: One entry per generated token (not for a forced prefix), if asked for.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    score: float | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class GenerationOutput:
    """The answers to one request, best first where beams score them."""

    prompt_ids: list[int]
    sequences: list[GeneratedSequence]

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.sequences[0].text


class Generator(Protocol):
    """Token ids in, answers out: what evaluation, the Python API, batch jobs and HTTP drive."""

    def generate(self, requests: Sequence[GenerationRequest], *, batch_size: int) -> list[GenerationOutput]:
        """Answer all requests, in their order."""
        ...
