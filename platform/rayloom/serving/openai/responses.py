"""Shapes of OpenAI's answers, for the OpenAPI document and for tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Body):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Body):
    """Every answer with a status of 400 or above."""

    error: ErrorDetail


class ModelBody(_Body):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayloom"
    max_model_len: int | None = None
    parent: str | None = None


class ModelList(_Body):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class Usage(_Body):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(_Body):
    """Log-probabilities of a text's tokens, list by list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Body):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class CompletionBody(_Body):
    """Answer to `/v1/completions`; its chunks look alike."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage | None = None


class ChatMessageBody(_Body):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatLogprobs(_Body):
    """Log-probabilities of a message's tokens."""

    content: list[dict[str, Any]]
    refusal: None


class ChatChoice(_Body):
    """One answer."""

    index: int
    message: ChatMessageBody
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatBody(_Body):
    """Answer to `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(_Body):
    """What the model says next."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Body):
    """What one answer goes on with."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(_Body):
    """Chunk of a streamed answer to `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
