"""What travels between the HTTP routes and a model replica: plain frozen values, no Ray, HTTP or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

ProblemType = Literal[
    "invalid_request",
    "prompt_too_long",
    "not_found",
    "method_not_allowed",
    "timeout",
    "overloaded",
    "not_ready",
    "internal",
]


@dataclass(frozen=True)
class Prompt:
    """The input of the model's own prompt template."""

    text: str
    context: str | None = None


@dataclass(frozen=True)
class Call:
    """One request for text.

    Attributes:
        prompt: What the template is filled with.
        parameters: Generation parameters that the caller gave, by `GenerationConfig` name.
        asks_question: Whether the caller wants an answer, which needs a prompt template.
    """

    prompt: Prompt
    parameters: Mapping[str, Any] = field(default_factory=dict)
    asks_question: bool = False


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one call.

    Attributes:
        model: Name of the model.
        texts: One text per returned sequence, the best first.
        finish_reason: Why the first sequence ended: ``stop``, ``length`` or ``time``.
        prompt_tokens: Tokens of the whole prompt, template included.
        completion_tokens: Tokens of all sequences together.
        logprobs: Per sequence the list of its tokens' log-probabilities, if asked for.
    """

    model: str
    texts: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[list[dict[str, Any]], ...] | None = None


@dataclass(frozen=True)
class Problem:
    """Why a call has no completion.

    Attributes:
        status: HTTP status.
        type: Kind of problem, for programs.
        message: What is wrong and how to mend it, for people.
        retry_after_s: When another try makes sense, in seconds.
    """

    status: int
    type: ProblemType
    message: str
    retry_after_s: int | None = None


Outcome: TypeAlias = Completion | Problem


@dataclass(frozen=True)
class ModelInfo:
    """What is served.

    Attributes:
        name: Name of the artifact or model.
        family: Architecture family.
        task: Task of the prompt template.
        answers_questions: Whether the template can turn a question into a prompt.
        takes_context: Whether the template has a place for a context.
    """

    name: str
    family: str
    task: str
    answers_questions: bool = True
    takes_context: bool = True


@dataclass(frozen=True)
class Health:
    """State of the service.

    Attributes:
        status: ``ok``; ``idle`` if scaled to zero (the next call wakes a replica); ``not_ready`` otherwise.
        num_replicas: Replicas that take calls.
        model: What is served, once a replica has told.
    """

    status: Literal["ok", "idle", "not_ready"]
    num_replicas: int
    model: ModelInfo | None = None


class ServedModel(Protocol):
    """A model that writes text for many calls at once."""

    @property
    def info(self) -> ModelInfo:
        """What is served."""
        ...

    async def complete(self, call: Call) -> Completion:
        """Write for one call, beside all others that run. When cancelled, its place is free at once.

        Raises:
            UserError: A prompt or parameter that cannot be honoured.
        """
        ...


class Backend(Protocol):
    """What the HTTP routes stand on: the model replicas, or a fake of them."""

    async def complete(self, call: Call) -> Outcome:
        """Write for one call. When cancelled, the call is dropped if it has not started."""
        ...

    async def health(self) -> Health:
        """State of the service. Answers within seconds, however busy the replicas are."""
        ...
