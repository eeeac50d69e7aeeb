"""Bodies of HTTP requests. Generation parameters are `GenerationConfig`'s own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayloom.config import GenerationConfig
from rayloom.serving.calls import Call, Prompt, TextCall
from rayloom.serving.shapes import check_fields, check_shape

_MOST_LISTED = 10_000


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
        check_shape(values)
        for name in GenerationConfig.model_fields.keys() & values.keys():
            # Each mistake in a list is an error of its own; limits proper come later, where they are known.
            if isinstance(values[name], list | dict) and len(values[name]) > _MOST_LISTED:
                raise ValueError(f"{name} has {len(values[name])} entries; at most {_MOST_LISTED} make sense")
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Replaces the check of GenerationConfig: what a request leaves out is not known here.
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that the request names, JSON-able."""
        return self.model_dump(mode="json", exclude_unset=True, include=set(GenerationConfig.model_fields))


class Part(BaseModel):
    """A part of a body, with fields of its own. One that is null counts as absent.

    Clients send back what they got: a turn of OpenAI's own client has a `refusal` that is null, and more.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        check_fields(values, "a part of the body")
        return {name: value for name, value in values.items() if value is not None}


MOST_MESSAGES = 10_000
"""Of a conversation, whatever may be in them: each takes time before anything else is known of it."""


class TextPart(Part):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Part):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who says it; `developer` is another name of `system`."""
    content: str | Annotated[list[TextPart], Field(fail_fast=True, max_length=MOST_MESSAGES)]
    """What is said; pieces are put together."""

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[Message], Field(fail_fast=True, max_length=MOST_MESSAGES)]
"""A list of a million mistakes is one mistake."""


class OwnRequest(GenerationParameters):
    """What bodies of `/generate` and `/answer` have in common."""

    model: str | None = None
    """Name of the model; whichever is served where not given."""
    user: str | None = None
    """Whom this is for, by the caller's own name: an A/B split keeps the same user on the same model."""
    stream: bool = False
    """Send the answer as it is written, as server-sent events."""
    details: bool = False
    """Also return each answer's token ids, score and finish reason."""

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        for name, is_given in (("details", self.details), ("logprobs", self.logprobs is not None)):
            if self.stream and is_given:
                raise ValueError(f"{name} cannot be streamed here: leave it out, or do not stream")
        return self


class GenerateRequest(OwnRequest):
    """A prompt and generation parameters."""

    prompt: str = Field("", examples=["Hello, what's your name?"])
    """Input of the model's own prompt template: the text to continue, question, document or instruction."""
    context: str | None = None
    """What the prompt is about, for models whose template has a place for it."""
    messages: Messages | None = Field(None, min_length=1)
    """A conversation instead of a prompt, for models with a chat template."""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if self.messages is None and not self.prompt:
            raise ValueError("'prompt' is required" if "prompt" not in self.model_fields_set else "prompt is empty")
        if self.messages is not None and (self.prompt or self.context is not None):
            raise ValueError("give a prompt or messages, not both")
        return self

    def call(self) -> Call:
        """What the replica gets."""
        messages = None if self.messages is None else tuple(each.plain() for each in self.messages)
        prompt = Prompt(self.prompt, self.context, messages)
        return Call(prompt, self.parameters, model=self.model, user=self.user)


class AnswerRequest(OwnRequest):
    """A question, and the context to answer it from."""

    question: str = Field(min_length=1, examples=["What is the capital of France?"])
    """The question."""
    context: str | None = Field(None, examples=["Paris is the capital of France."])
    """Text to find the answer in."""

    def call(self) -> Call:
        """What the replica gets."""
        prompt = Prompt(self.question, self.context)
        return Call(prompt, self.parameters, asks_question=True, model=self.model, user=self.user)


class TokensRequest(BaseModel):
    """What bodies of `/tokenize` and `/detokenize` have in common."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_shape(cls, values: Any) -> Any:
        if isinstance(values, dict):
            check_shape(values)
        return values


class TokenizeRequest(TokensRequest):
    """A text or a conversation."""

    model: str | None = None
    """Name of the model; whichever is served where not given."""
    prompt: str | None = None
    """A text, as `/v1/completions` takes it."""
    messages: Messages | None = Field(None, min_length=1)
    """A conversation, as `/v1/chat/completions` takes it."""
    add_special_tokens: bool = True
    """Whether a text gets the tokenizer's special tokens; a conversation always has its template's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt or messages")
        return self

    def call(self) -> TextCall:
        """What the replica gets."""
        messages = None if self.messages is None else tuple(each.plain() for each in self.messages)
        prompt = Prompt(self.prompt or "", messages=messages, raw=messages is None)
        return TextCall(prompt, adds_special_tokens=self.add_special_tokens, model=self.model)


class DetokenizeRequest(TokensRequest):
    """Tokens."""

    model: str | None = None
    """Name of the model; whichever is served where not given."""
    tokens: Annotated[list[int], Field(fail_fast=True)]
    """Token ids."""

    def call(self) -> TextCall:
        """What the replica gets."""
        return TextCall(token_ids=tuple(self.tokens), model=self.model)
