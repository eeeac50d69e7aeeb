"""Bodies of `/v1/completions` and `/v1/chat/completions`: OpenAI's parameters, and ours as an extension."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SkipValidation, StrictBool, StrictInt, StrictStr

from rayloom.errors import RequestError
from rayloom.serving.calls import Call, Prompt
from rayloom.serving.openai.parameters import translated
from rayloom.serving.schemas import GenerationParameters, Messages, Part

_PROMPT_KINDS = "a text, a list of texts, a list of token ids, or a list of such lists"

_MOST_PROMPTS = 4096
"""Of one request, whatever a server's own limit is: it is looked at only when there is a call for each."""


def _checked_prompt(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    kinds = [kind for kind in (str, int, list) if items and all(type(item) is kind for item in items)]
    inner = [each for item in items if isinstance(item, list) for each in item]
    if kinds != [int] and len(items) > _MOST_PROMPTS:
        raise ValueError(f"{len(items)} prompts are too many")
    if not kinds or (kinds == [int] and items is not value) or not all(type(each) is int for each in inner):
        raise ValueError(f"the prompt is {_PROMPT_KINDS}")
    return value


_Prompts = Annotated[
    # Each of millions of tokens would be a mistake of those kinds that the prompt is not.
    SkipValidation[StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]],
    BeforeValidator(_checked_prompt),
]
_StopStrings = StrictStr | Annotated[list[StrictStr], Field(max_length=16)]


class StreamOptions(Part):
    """How to stream."""

    include_usage: bool = False
    """End with a chunk that has no choices, but the usage."""


class SharedRequest(GenerationParameters):
    """What both routes take. Every parameter of Rayloom is an extension of OpenAI's.

    One that is absent or null has the model's own default, the number of tokens included.
    """

    model: str | None = None
    """Name of the model, see `/v1/models`; whichever is served where not given."""
    stream: bool = False
    """Send the answer as it is written, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: int | None = Field(None, ge=1)
    """Answers per prompt. Above 1 they are sampled, unless `num_beams` is given."""
    stop: _StopStrings | None = None
    """Text, or up to 16 texts, that end the answer; they are no part of it."""
    temperature: float | None = Field(None, ge=0.0)
    """Above 0: sample, with logits divided by this. 0: take the likeliest tokens, whatever else is said."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Makes sampling repeatable."""
    frequency_penalty: Literal[0] | None = None
    """Only 0: take `repetition_penalty` instead."""
    presence_penalty: Literal[0] | None = None
    """Only 0: take `repetition_penalty` instead."""
    user: str | None = None
    """Whom this is for, by the caller's own name: an A/B split keeps the same user on the same model."""

    @property
    def num_answers(self) -> int:
        """Answers per prompt."""
        return self.n or self.num_return_sequences


class CompletionRequest(SharedRequest):
    """A prompt that goes to the model as it is, with the tokenizer's special tokens and without a template."""

    prompt: _Prompts = Field(examples=["Once upon a time"])
    """A text, texts, token ids, or lists of token ids. Encoder-decoder models: the encoder's input."""
    max_tokens: int | None = Field(None, ge=0)
    """Most tokens to write; 0 with `echo` only scores the prompt."""
    best_of: int | None = Field(None, ge=1)
    """Write so many answers, return the `n` of the highest mean log-probability per token. Not with `stream`."""
    echo: bool = False
    """Return the prompt in front of the answer; with `logprobs` also the prompt's. Not for encoder-decoder models."""
    suffix: str | None = None
    """Refused: no model here fills text in."""

    def calls(self) -> list[Call]:
        """One call for each prompt.

        Raises:
            RequestError: Parameters that contradict each other.
        """
        self._refuse_contradictions()
        parameters = translated(self)
        call = Call(
            Prompt(),
            parameters,
            model=self.model,
            best_of=self.best_of if self.best_of != self.num_answers else None,
            scores_prompt=self.echo and self.logprobs is not None,
            writes_nothing=self.max_tokens == 0,
            echoes=self.echo,
            user=self.user,
        )
        return [_with_prompt(call, each) for each in self._prompts()]

    def _prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [Prompt(self.prompt, raw=True)]
        if isinstance(self.prompt[0], int):
            return [_ids(self.prompt)]
        return [Prompt(each, raw=True) if isinstance(each, str) else _ids(each) for each in self.prompt]

    def _refuse_contradictions(self) -> None:
        if self.suffix:
            raise RequestError(
                "suffix is not available: no model here fills text in; put what is known into the prompt"
            )
        if self.best_of is not None and self.best_of < self.num_answers:
            raise RequestError(f"best_of {self.best_of} is less than n {self.num_answers}")
        if self.stream and self.best_of is not None and self.best_of != self.num_answers:
            raise RequestError("best_of cannot be streamed: the best is known at the end; leave stream out")
        if self.max_tokens == 0 and self.num_answers > 1:
            raise RequestError("n above 1 does not go with max_tokens 0: nothing is written")
        _check_stream_options(self)


class JsonSchemaFormat(Part):
    """A schema and its name."""

    name: str
    """For the caller's own use."""
    description: str | None = None
    """For the caller's own use."""
    schema_: dict[str, Any] = Field(alias="schema")
    """What the answer has to be."""
    strict: bool | None = None
    """Answers always follow the schema, whatever this says."""


class ResponseFormat(Part):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    """`json_object`: any JSON object."""
    json_schema: JsonSchemaFormat | None = None
    """With type `json_schema`."""

    def schema_of_answer(self) -> dict[str, Any] | None:
        """JSON schema of the answer.

        Raises:
            RequestError: `json_schema` without a schema, or with one of no use.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise RequestError("response_format: type json_schema and json_schema go together")
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(SharedRequest):
    """A conversation, through the model's chat template.

    A model without one takes a single message, from the user: it fills the template that the model was trained with.
    """

    messages: Messages = Field(min_length=1)
    """The conversation; the last turn is the user's."""
    max_tokens: int | None = Field(None, ge=1)
    """Older name of `max_completion_tokens`."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens to write."""
    logprobs: StrictBool | None = None
    """Return each token's log-probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """With `logprobs`: also so many of the likeliest tokens at each place."""
    response_format: ResponseFormat | None = None
    """Force the answer to be JSON."""

    def calls(self) -> list[Call]:
        """The call.

        Raises:
            RequestError: Parameters that contradict each other.
        """
        parameters = translated(self)
        if self.logprobs:
            parameters["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise RequestError("top_logprobs needs logprobs: true")
        schema = self.response_format.schema_of_answer() if self.response_format else None
        if schema is not None:
            if "json_schema" in parameters:
                raise RequestError("json_schema and response_format both decide the whole answer: give one")
            parameters["json_schema"] = schema
        _check_stream_options(self)
        messages = tuple(message.plain() for message in self.messages)
        return [Call(Prompt(messages=messages), parameters, model=self.model, user=self.user)]


def _check_stream_options(body: SharedRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true")


def _ids(token_ids: Any) -> Prompt:
    return Prompt(token_ids=tuple(token_ids))


def _with_prompt(call: Call, prompt: Prompt) -> Call:
    return replace(call, prompt=prompt)
