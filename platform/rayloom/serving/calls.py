"""What travels between the HTTP routes and a model replica: plain frozen values, no Ray, HTTP or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

ProblemType = Literal[
    "invalid_request",
    "prompt_too_long",
    "unauthorized",
    "forbidden",
    "not_found",
    "model_not_found",
    "method_not_allowed",
    "timeout",
    "rate_limited",
    "overloaded",
    "not_ready",
    "internal",
]
FinishReason = Literal["stop", "length", "time"]


@dataclass(frozen=True)
class Prompt:
    """What the model is to go on from: exactly one of text, messages and token ids.

    Attributes:
        text: Fills the model's own prompt template; or the prompt as it is, if `raw`.
        context: Of the text, for templates that have a place for it.
        messages: A conversation of ``{role, content}``.
        token_ids: The prompt as the model sees it.
        raw: The text is no input of the template; only the tokenizer's special tokens are added.
    """

    text: str = ""
    context: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    raw: bool = False


@dataclass(frozen=True)
class Call:
    """One request for text.

    Attributes:
        prompt: What to go on from.
        parameters: Generation parameters that the caller gave, by `GenerationConfig` name.
        asks_question: Whether the caller wants an answer, which needs a prompt template.
        model: Name of the model that the caller wants; None for whichever there is.
        best_of: Candidates of which the likeliest ``num_return_sequences`` are returned.
        scores_prompt: Also tell the log-probabilities of the prompt's own tokens, as many as ``logprobs`` says.
        writes_nothing: The prompt is only scored: what is written is thrown away.
        echoes: The prompt's text is wanted, too.
        owner: Whose call it is: owners take turns.
        priority: Lower goes first.
        drawn_seed: Seed where neither the caller nor the model's own parameters name one.
        user: Whom the caller names as its own user.
        sticky: Calls with the same one stay on the same arm of a split; at random where empty.
    """

    prompt: Prompt
    parameters: Mapping[str, Any] = field(default_factory=dict)
    asks_question: bool = False
    model: str | None = None
    best_of: int | None = None
    scores_prompt: bool = False
    writes_nothing: bool = False
    echoes: bool = False
    owner: str = ""
    priority: int = 0
    drawn_seed: int | None = None
    user: str | None = None
    sticky: str = ""


class Likely(NamedTuple):
    """One of the likeliest tokens at some place.

    Attributes:
        token_id: The token.
        raw: The bytes that it writes.
        logprob: Natural logarithm of its probability.
    """

    token_id: int
    raw: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of a prompt or an answer.

    Attributes:
        token_id: The token.
        raw: The bytes that it writes; special tokens write their name.
        offset: Where it begins in its text, in characters.
        logprob: Natural logarithm of its probability; None for a prompt's first token, which nothing predicts.
        top: The likeliest tokens at this place, best first.
    """

    token_id: int
    raw: bytes
    offset: int
    logprob: float | None
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Started:
    """First part of every answer.

    Attributes:
        model: Name of the model.
        fingerprint: Changes when the model's answers may change.
        prompt_tokens: Tokens of the whole prompt, template included.
        prompt_text: The prompt as the model sees it, if the call echoes it.
        prompt: The prompt's tokens, if they are scored.
        prompt_ids: Their ids.
        arm: Which model of a split it was; empty where there was no choice.
        adapter: Name of the adapter that answers; empty for none.
    """

    model: str
    fingerprint: str
    prompt_tokens: int
    prompt_text: str = ""
    prompt: tuple[Token, ...] | None = None
    prompt_ids: tuple[int, ...] = ()
    arm: str = ""
    adapter: str = ""


@dataclass(frozen=True)
class Timing:
    """How long the engine took for a call.

    Attributes:
        submitted_at: When it came there, in seconds since 1970 by the replica's clock.
        queued_s: Seconds until it had a place in the batch.
        prefill_s: Seconds from then to its first token.
        decode_s: Seconds from then to its end.
        num_steps: Tokens of its longest answer.
    """

    submitted_at: float
    queued_s: float
    prefill_s: float
    decode_s: float
    num_steps: int


@dataclass(frozen=True)
class Part:
    """What an answer goes on with.

    Attributes:
        index: Which of the call's answers.
        text: Goes behind what was told before.
        num_tokens: Tokens written since the last part.
        tokens: Tokens all of whose text is told, if log-probabilities were asked for.
        end: With the last part: the end-of-sequence token, if log-probabilities were asked for.
        finish_reason: Why the answer ended: ``stop``, ``length`` or ``time``; None while it goes on.
        timing: With the last part: how long the call took.
    """

    index: int
    text: str
    num_tokens: int = 0
    tokens: tuple[Token, ...] = ()
    end: Token | None = None
    finish_reason: FinishReason | None = None
    timing: Timing | None = None


@dataclass(frozen=True)
class Choice:
    """One whole answer.

    Attributes:
        text: The answer.
        finish_reason: Why it ended.
        token_ids: Its tokens, end of sequence left out.
        tokens: The tokens of its text, if log-probabilities were asked for.
        end: The end-of-sequence token, likewise.
        score: Beam search: sum of log-probabilities over length ** length_penalty.
    """

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    tokens: tuple[Token, ...] | None = None
    end: Token | None = None
    score: float | None = None


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one call.

    Attributes:
        started: Model and prompt.
        choices: The answers, the best first.
        completion_tokens: Tokens of all sequences together, those of candidates that were not chosen included.
        timing: How long it took.
    """

    started: Started
    choices: tuple[Choice, ...]
    completion_tokens: int
    timing: Timing | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Text of every answer."""
        return tuple(choice.text for choice in self.choices)


@dataclass(frozen=True)
class Problem:
    """Why a call has no completion, or none any more.

    Attributes:
        status: HTTP status.
        type: Kind of problem, for programs.
        message: What is wrong and how to mend it, for people.
        retry_after_s: When another try makes sense, in seconds.
        param: Name of the parameter that is wrong.
    """

    status: int
    type: ProblemType
    message: str
    retry_after_s: int | None = None
    param: str | None = None


Outcome: TypeAlias = Completion | Problem
Event: TypeAlias = Started | Part | Problem
"""`Started`, then parts, then nothing; or a problem, which is the last, at any place."""


@dataclass(frozen=True)
class TextCall:
    """A text or a conversation to be turned into tokens, or tokens to be turned into text.

    Attributes:
        prompt: What to encode; None to decode.
        token_ids: What to decode.
        adds_special_tokens: Whether a raw text gets the tokenizer's special tokens.
        model: As in `Call`.
    """

    prompt: Prompt | None = None
    token_ids: tuple[int, ...] = ()
    adds_special_tokens: bool = True
    model: str | None = None


@dataclass(frozen=True)
class Tokens:
    """A text and its tokens.

    Attributes:
        text: The text, where it was asked for.
        token_ids: The tokens.
        max_positions: What the model holds at most, prompt and answer together; None for no bound.
    """

    text: str
    token_ids: tuple[int, ...]
    max_positions: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What is served.

    Attributes:
        name: Name of the artifact or model.
        family: Architecture family.
        task: Task of the prompt template.
        answers_questions: Whether the template can turn a question into a prompt.
        takes_context: Whether the template has a place for a context.
        created: When the model was made, in seconds since 1970.
        max_positions: What it holds at most, prompt and answer together; None for no bound.
        parent: Of an adapter: the model that it changes.
        adapters: Those that the same replicas serve.
    """

    name: str
    family: str
    task: str
    answers_questions: bool = True
    takes_context: bool = True
    created: int = 0
    max_positions: int | None = None
    parent: str | None = None
    adapters: tuple[ModelInfo, ...] = ()

    def named(self, name: str | None) -> ModelInfo | None:
        """The model, or its adapter, of this name; the model itself for none."""
        if name is None or name == self.name:
            return self
        return next((adapter for adapter in self.adapters if adapter.name == name), None)


@dataclass(frozen=True)
class Figures:
    """What one replica's engine does now, and has done.

    Attributes:
        model: Name of the model.
        numbers: By the names of `rayloom.engine.EngineStats`.
        adapters: Calls in flight by adapter, of those in memory or in use.
        replica: Name of the replica.
        tokens_in_flight: Of all calls in flight: tokens of the prompts, and as many as the answers may have.
    """

    model: str
    numbers: Mapping[str, float]
    adapters: Mapping[str, int] = field(default_factory=dict)
    replica: str = ""
    tokens_in_flight: int = 0


Status = Literal["ok", "idle", "not_ready"]


@dataclass(frozen=True)
class Following:
    """A model that follows a stage of the registry.

    Attributes:
        version: What is served.
        failure: Why a newer version is not: it could not be opened, or the registry not be read. None if all is well.
    """

    version: str
    failure: str | None = None


@dataclass(frozen=True)
class Health:
    """State of the service, or of one model of several.

    Attributes:
        status: ``ok``; ``idle`` if scaled to zero (the next call wakes a replica); ``not_ready`` otherwise.
        num_replicas: Replicas that take calls.
        model: What is served, once a replica has told.
        models: Each model by its name, where there are several.
        following: If it follows a stage of the registry.
    """

    status: Status
    num_replicas: int
    model: ModelInfo | None = None
    models: Mapping[str, Health] = field(default_factory=dict)
    following: Following | None = None
