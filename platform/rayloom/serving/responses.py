"""Bodies of HTTP responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rayloom.serving.calls import Completion, Health, Problem, ProblemType, Token


class Usage(BaseModel):
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int


class ChoiceDetails(BaseModel):
    """One answer with all that is known of it."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "time"]
    score: float | None = None


class Details(BaseModel):
    """What `details` asks for."""

    prompt_ids: list[int]
    answers: list[ChoiceDetails]


class _Response(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    finish_reason: Literal["stop", "length", "time"]
    """Why the (first) text ended: of itself, at the token limit, or at max_time."""
    logprobs: list[list[dict[str, Any]]] | None = None
    """Per text its tokens' log-probabilities, if asked for."""
    usage: Usage
    model: str
    details: Details | None = None
    """Token ids and scores, if asked for."""


class GenerateResponse(_Response):
    """What the model wrote."""

    text: str
    """The (best) text."""
    texts: list[str] | None = None
    """All texts, the best first, where more than one was asked for."""

    @classmethod
    def of(cls, completion: Completion, *, details: bool = False) -> GenerateResponse:
        """The response to a completion."""
        return cls(text=completion.texts[0], texts=_several(completion), **_common(completion, details=details))


class AnswerResponse(_Response):
    """The model's answer."""

    answer: str
    """The (best) answer."""
    answers: list[str] | None = None
    """All answers, the best first, where more than one was asked for."""

    @classmethod
    def of(cls, completion: Completion, *, details: bool = False) -> AnswerResponse:
        """The response to a completion."""
        return cls(answer=completion.texts[0], answers=_several(completion), **_common(completion, details=details))


def _several(completion: Completion) -> list[str] | None:
    return list(completion.texts) if len(completion.choices) > 1 else None


def _common(completion: Completion, *, details: bool) -> dict[str, Any]:
    started, choices = completion.started, completion.choices
    logprobs = [[_logprob(token) for token in choice.tokens] for choice in choices if choice.tokens is not None]
    return {
        "finish_reason": choices[0].finish_reason,
        "logprobs": logprobs or None,
        "usage": Usage(prompt_tokens=started.prompt_tokens, completion_tokens=completion.completion_tokens),
        "model": started.model,
        "details": _details(completion) if details else None,
    }


def _details(completion: Completion) -> Details:
    return Details(
        prompt_ids=list(completion.started.prompt_ids),
        answers=[
            ChoiceDetails(
                text=choice.text,
                token_ids=list(choice.token_ids),
                finish_reason=choice.finish_reason,
                score=choice.score,
            )
            for choice in completion.choices
        ],
    )


def _logprob(token: Token) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "token": token.raw.decode(errors="replace"),
        "logprob": token.logprob,
        "top": [[each.token_id, each.logprob] for each in token.top],
    }


class TokenizeResponse(BaseModel):
    """A prompt's tokens."""

    tokens: list[int]
    count: int
    max_model_len: int | None


class DetokenizeResponse(BaseModel):
    """The tokens' text, special tokens by their names."""

    prompt: str


class ReadyResponse(BaseModel):
    """Calls are taken."""

    status: Literal["ready"] = "ready"


class ServedModelBody(BaseModel):
    """What is served."""

    name: str
    family: str
    task: str


class FollowingBody(BaseModel):
    """A model that follows a stage of the registry."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str
    """What is served: a version of the registry, or where there is none the artifact's last folder."""
    failure: str | None = None
    """Why a newer version is not."""


class _State(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    num_replicas: int
    """Replicas that take calls."""
    model: ServedModelBody | None = None
    """What is served, once a replica has told."""
    following: FollowingBody | None = None
    """Of a model that follows a stage of the registry."""


class ModelHealth(_State):
    """State of one model of several."""

    status: Literal["ok", "idle", "not_ready"]
    """``idle``: scaled to zero; the next call wakes a replica."""

    @classmethod
    def of(cls, health: Health) -> ModelHealth:
        """The state's body."""
        return cls.model_validate(_state_of(health))


class HealthResponse(_State):
    """State of the service."""

    status: Literal["ok", "idle"]
    """``idle``: scaled to zero; the next call wakes a replica."""
    models: dict[str, ModelHealth] | None = None
    """Where there are several: each by its name."""

    @classmethod
    def of(cls, health: Health) -> HealthResponse:
        """The response for a state that is not ``not_ready``."""
        models = {name: ModelHealth.of(each) for name, each in health.models.items()}
        return cls.model_validate({**_state_of(health), "models": models or None})


def _state_of(health: Health) -> dict[str, Any]:
    model, following = health.model, health.following
    return {
        "status": health.status,
        "num_replicas": health.num_replicas,
        "model": model and ServedModelBody(name=model.name, family=model.family, task=model.task),
        "following": following and FollowingBody(version=following.version, failure=following.failure),
    }


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: ProblemType
    message: str


class ErrorResponse(BaseModel):
    """Every answer with a status of 400 or above."""

    error: ErrorDetail

    @classmethod
    def of(cls, problem: Problem) -> ErrorResponse:
        """The response to a problem."""
        return cls(error=ErrorDetail(type=problem.type, message=problem.message))
