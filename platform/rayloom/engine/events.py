"""What the engine tells about its requests. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayloom.engine.request import Hypothesis, TokenScore


@dataclass(frozen=True)
class NewToken:
    """A sequence has got a token that will stay. Beams tell nothing before they are done.

    Attributes:
        group_id: The request.
        index: Which of its sequences.
        token: The token; never an end of sequence.
        score: Its log-probability, if asked for.
    """

    group_id: int
    index: int
    token: int
    score: TokenScore | None = None


@dataclass(frozen=True)
class PromptScored:
    """A request's prompt is read: told once, before its first token, where ``prompt_logprobs`` were asked for.

    Attributes:
        group_id: The request.
        scores: Of all its start tokens but the first.
    """

    group_id: int
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Timing:
    """How long a request took.

    Attributes:
        submitted_at: When it came, in seconds since 1970.
        queued_s: Seconds until it was seated first.
        prefill_s: Seconds from then to its first token. Beams: to their first step.
        decode_s: Seconds from then to its end.
        num_steps: Tokens of its longest answer, its end of sequence not counted.
    """

    submitted_at: float
    queued_s: float
    prefill_s: float
    decode_s: float
    num_steps: int


@dataclass(frozen=True)
class Done:
    """A request has all its answers: by index, or best first where beams score them.

    Attributes:
        group_id: The request.
        hypotheses: One per ``num_return_sequences``.
        timing: How long it took.
    """

    group_id: int
    hypotheses: tuple[Hypothesis, ...]
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Failed:
    """A request has come to nothing.

    Attributes:
        group_id: The request.
        error: What broke it.
    """

    group_id: int
    error: Exception


Event = NewToken | PromptScored | Done | Failed
