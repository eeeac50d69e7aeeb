"""What a generation request and its answer are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rayloom.config import GenerationConfig
from rayloom.engine import FinishReason, Timing


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, and how to go on from it.

    Attributes:
        prompt_ids: Token ids of the prompt (seq2seq: of the encoder's input).
        config: Generation parameters.
        prefix_ids: Token ids that the answer is forced to start with; part of the answer.
        prompt_logprobs: Score the prompt's own tokens, and name so many likelier ones (causal models).
    """

    prompt_ids: list[int]
    config: GenerationConfig = field(default_factory=GenerationConfig)
    prefix_ids: list[int] = field(default_factory=list)
    prompt_logprobs: int | None = None


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
        end: The end-of-sequence token that ended it and its log-probability, if asked for; beams do not say.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    score: float | None = None
    logprobs: list[TokenLogprob] | None = None
    end: TokenLogprob | None = field(default=None, compare=False)


@dataclass(frozen=True)
class GenerationOutput:
    """The answers to one request, best first where beams score them.

    Attributes:
        prompt_ids: The prompt's tokens.
        sequences: The answers.
        prompt_logprobs: Of all the prompt's tokens but the first (a forced prefix included), if asked for.
        timing: How long it took; None where no engine wrote.
    """

    prompt_ids: list[int]
    sequences: list[GeneratedSequence]
    prompt_logprobs: list[TokenLogprob] | None = None
    timing: Timing | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.sequences[0].text


@dataclass(frozen=True)
class Chunk:
    """What has come of one answer since the last chunk of it.

    Attributes:
        index: Which of the request's answers.
        text: What its text goes on with; never part of a character, nor of a stop string.
        num_tokens: Tokens that the model has written for it since, those of text that is held back included.
        logprobs: Of the tokens whose text is out, if asked for; of tokens that a stop string cut off never.
        offsets: Where in the answer's text each of these begins, in characters.
        end: With the last chunk: the end-of-sequence token, as in `GeneratedSequence`.
        finish_reason: Why the answer ended; None while it goes on.
        timing: With the last chunk: how long the request took.
    """

    index: int
    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    offsets: tuple[int, ...] = ()
    end: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of the prompt's tokens, told before the first chunk if asked for.

    Attributes:
        logprobs: Of all tokens but the first, a forced prefix included.
    """

    logprobs: tuple[TokenLogprob, ...]


class Generator(Protocol):
    """Token ids in, answers out: what evaluation, the Python API, batch jobs and HTTP drive."""

    def generate(self, requests: Sequence[GenerationRequest], *, batch_size: int) -> list[GenerationOutput]:
        """Answer all requests, in their order."""
        ...
