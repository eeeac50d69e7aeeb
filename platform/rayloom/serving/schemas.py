"""Bodies of HTTP requests and responses. Generation parameters are `GenerationConfig`'s own."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayloom.config import GenerationConfig, nearest
from rayloom.serving.calls import Call, Completion, Health, Problem, ProblemType, Prompt


def _show_as_request(schema: dict[str, Any]) -> None:
    """OpenAPI: own fields first, and no defaults, for those are the model's."""
    properties = schema["properties"]
    for name in GenerationConfig.model_fields:
        properties[name].pop("default", None)
        properties[name] = properties.pop(name)


class GenerationParameters(GenerationConfig):
    """Generation parameters of a request. One that is absent or null has the model's own default."""

    model_config = ConfigDict(json_schema_extra=_show_as_request)

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("the text is not valid Unicode (half of a surrogate pair)") from None
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Replaces the check of GenerationConfig: what a request leaves out is not known here.
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that the request names, JSON-able."""
        return self.model_dump(mode="json", exclude_unset=True, include=set(GenerationConfig.model_fields))


class GenerateRequest(GenerationParameters):
    """A prompt and generation parameters."""

    prompt: str = Field(min_length=1, examples=["Hello, what's your name?"])
    """Input of the model's own prompt template: the text to continue, question, document or instruction."""
    context: str | None = None
    """What the prompt is about, for models whose template has a place for it."""

    def call(self) -> Call:
        """What the replica gets."""
        return Call(Prompt(self.prompt, self.context), self.parameters)


class AnswerRequest(GenerationParameters):
    """A question, and the context to answer it from."""

    question: str = Field(min_length=1, examples=["What is the capital of France?"])
    """The question."""
    context: str | None = Field(None, examples=["Paris is the capital of France."])
    """Text to find the answer in."""

    def call(self) -> Call:
        """What the replica gets."""
        return Call(Prompt(self.question, self.context), self.parameters, asks_question=True)


class Usage(BaseModel):
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int


class GenerateResponse(BaseModel):
    """What the model wrote."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    text: str
    """The (best) text."""
    texts: list[str] | None = None
    """All texts, the best first, where more than one was asked for."""
    finish_reason: Literal["stop", "length", "time"]
    """Why the text ended: of itself, at the token limit, or at max_time."""
    logprobs: list[list[dict[str, Any]]] | None = None
    """Per text its tokens' log-probabilities, if asked for."""
    usage: Usage
    model: str

    @classmethod
    def of(cls, completion: Completion) -> GenerateResponse:
        """The response to a completion."""
        return cls(text=completion.texts[0], texts=_several(completion), **_common(completion))


class AnswerResponse(BaseModel):
    """The model's answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    answer: str
    """The (best) answer."""
    answers: list[str] | None = None
    """All answers, the best first, where more than one was asked for."""
    finish_reason: Literal["stop", "length", "time"]
    """Why the answer ended: of itself, at the token limit, or at max_time."""
    logprobs: list[list[dict[str, Any]]] | None = None
    """Per answer its tokens' log-probabilities, if asked for."""
    usage: Usage
    model: str

    @classmethod
    def of(cls, completion: Completion) -> AnswerResponse:
        """The response to a completion."""
        return cls(answer=completion.texts[0], answers=_several(completion), **_common(completion))


def _several(completion: Completion) -> list[str] | None:
    return list(completion.texts) if len(completion.texts) > 1 else None


def _common(completion: Completion) -> dict[str, Any]:
    return {
        "finish_reason": completion.finish_reason,
        "logprobs": list(completion.logprobs) if completion.logprobs is not None else None,
        "usage": Usage(prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens),
        "model": completion.model,
    }


class ServedModelBody(BaseModel):
    """What is served."""

    name: str
    family: str
    task: str


class HealthResponse(BaseModel):
    """State of the service."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["ok", "idle"]
    """``idle``: scaled to zero; the next call wakes a replica."""
    num_replicas: int
    """Replicas that take calls."""
    model: ServedModelBody | None = None
    """What is served, once a replica has told."""

    @classmethod
    def of(cls, health: Health) -> HealthResponse:
        """The response for a state that is not ``not_ready``."""
        model = health.model and ServedModelBody(
            name=health.model.name, family=health.model.family, task=health.model.task
        )
        return cls.model_validate({"status": health.status, "num_replicas": health.num_replicas, "model": model})


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


def describe_invalid(error: dict[str, Any], known: list[str]) -> str:
    """One sentence for the caller about a pydantic error in a request body.

    Args:
        error: One item of ``ValidationError.errors()``, its location starting with ``body``.
        known: Names of the body's fields.
    """
    location = [str(part) for part in error["loc"][1:]]
    if error["type"] == "extra_forbidden":
        near = nearest(location[0], known)
        return f"unknown field '{location[0]}'" + (f"; did you mean '{near}'?" if near else "")
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error.get('ctx', {}).get('error', 'cannot be read')}"
    if error["type"] == "missing":
        return f"'{location[0]}' is required" if location else "a JSON body is required"
    if error["type"] == "model_attributes_type":
        return "the body is to be a JSON object, sent with Content-Type: application/json"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message[0].lower()}{message[1:]}" if location else message
