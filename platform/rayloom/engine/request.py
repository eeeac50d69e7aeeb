"""What the engine is asked, and what it holds while it answers. Integers and numbers only, no tensors."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

FinishReason = Literal["stop", "length", "time"]


@dataclass(frozen=True, kw_only=True)
class Params:
    """How one request is answered: every value resolved, neutral where the caller said nothing.

    Names and meanings are those of ``transformers.generate``.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    eta_cutoff: float = 0.0
    epsilon_cutoff: float = 0.0
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(start, factor), the start counted from the first generated token, as transformers does."""
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    max_time: float | None = None
    seed: int = 0
    """Sampling depends on this, the sequence's index and the step, and on nothing else."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    """As ``logprobs``, of the start tokens (all but the first)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit before anything else)."""

    @property
    def is_beam(self) -> bool:
        """Whether several hypotheses compete."""
        return self.num_beams > 1

    @property
    def num_sequences(self) -> int:
        """Sequences that the request holds in the cache once it decodes."""
        return self.num_beams if self.is_beam else self.num_return_sequences


class Constraint(Protocol):
    """Which tokens a sequence may take next. One object per sequence; beams fork it."""

    def mask(self) -> npt.NDArray[np.uint32] | None:
        """Bit t of word t // 32 is set where token t is allowed; None where all are.

        At least one bit is set. End of sequence is a token like others. Thread-safe against other objects.
        """
        ...

    def advance(self, token: int) -> None:
        """The sequence has taken this (allowed) token."""
        ...

    def fork(self) -> Constraint:
        """An independent copy in the same state."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the answer is whole, and nothing but the end may follow, however many tokens were left."""
        ...


class StopCheck(Protocol):
    """Whether a sequence has written one of its stop strings."""

    def __call__(self, tokens: Seq[int]) -> bool:
        """Whether the last token completes a stop string.

        Args:
            tokens: All of the sequence's tokens: start tokens (a causal model's prompt) and generated ones.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One prompt, and how to go on from it.

    Attributes:
        start_ids: Tokens that the (decoder's) sequence starts with. Causal: prompt and forced prefix; seq2seq:
            decoder start token and forced prefix. Never empty.
        encoder_ids: Seq2seq: the encoder's input. Causal: empty.
        params: How to generate.
        constraints: Templates; every sequence gets forks of them. Masks are intersected.
        stop: Stop strings.
        adapter: Name of the adapter, None for the base model.
        priority: Lower goes first.
        owner: Requests of one owner share its turn (fairness).
    """

    start_ids: tuple[int, ...]
    params: Params
    encoder_ids: tuple[int, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    stop: StopCheck | None = None
    adapter: str | None = None
    priority: int = 0
    owner: str = ""

    @property
    def max_length(self) -> int:
        """Most tokens of one of its sequences."""
        return len(self.start_ids) + self.params.max_new_tokens


class Status(enum.Enum):
    """Where a group is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """One line of tokens in the cache.

    Attributes:
        index: 0 … num_sequences - 1 within its request; with the seed it decides what is sampled.
        tokens: Start tokens, then generated ones.
        num_computed: How many of them have keys and values in the cache.
        blocks: Cache blocks in order; block i holds tokens i * BLOCK … (i + 1) * BLOCK - 1.
        slot: Row of the engine's per-sequence tables while it runs, else -1.
        constraints: Own forks of the request's.
        logprobs: Per generated token, if asked for: its log-probability and the top ones.
    """

    index: int
    tokens: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    constraints: tuple[Constraint, ...] = ()
    logprobs: list[TokenScore] = field(default_factory=list)

    @property
    def remain_len(self) -> int:
        """Tokens that are not in the cache yet. 1 while decoding."""
        return len(self.tokens) - self.num_computed


@dataclass(frozen=True)
class TokenScore:
    """Log-probability of one chosen token under the model itself, and of the likeliest ones, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Group:
    """A request in flight, with the sequences that answer it. They are scheduled together or not at all.

    Attributes:
        group_id: Unique, ascending with arrival.
        request: What was asked.
        arrival: Clock time of submission, in seconds.
        sequences: Live sequences. One until the prompt is computed, then ``params.num_sequences``.
        cross_blocks: Seq2seq: cache blocks with the encoder's keys and values.
        encoded: Whether those are written.
        layers_read: Encoder layers that a long prompt has been through.
        prompt_scores: Of start tokens 1 …, as far as they are computed; see `prompts`.
        has_told_prompt: Whether those were handed out.
    """

    group_id: int
    request: EngineRequest
    arrival: float
    status: Status = Status.WAITING
    sequences: list[Sequence] = field(default_factory=list)
    cross_blocks: list[int] = field(default_factory=list)
    encoded: bool = False
    layers_read: int = 0
    prompt_scores: list[TokenScore] = field(default_factory=list)
    has_told_prompt: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer: generated tokens only (forced prefix, end of sequence and padding left out).

    Attributes:
        tokens: Generated tokens.
        reason: Why it ended.
        score: Beams: sum of log-probabilities over length ** length_penalty, else None.
        logprobs: One per token, if asked for.
        end: The end-of-sequence token that it ended with, and its log-probability, if asked for; beams do not say.
    """

    tokens: tuple[int, ...]
    reason: FinishReason
    score: float | None = None
    logprobs: tuple[TokenScore, ...] | None = None
    end: tuple[int, TokenScore] | None = field(default=None, compare=False)
