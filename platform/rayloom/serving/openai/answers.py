"""Bodies and chunks of OpenAI's answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayloom.serving.calls import Choice, Completion, FinishReason, Problem, Started, Token

Json = dict[str, Any]
Kind = Literal["text_completion", "chat.completion", "chat.completion.chunk"]

# Of our own kinds of problems: OpenAI's type and code.
_ERRORS: dict[str, tuple[str, str | None]] = {
    "invalid_request": ("invalid_request_error", None),
    "prompt_too_long": ("invalid_request_error", "context_length_exceeded"),
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "insufficient_permissions"),
    "not_found": ("invalid_request_error", "unknown_url"),
    "model_not_found": ("invalid_request_error", "model_not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_supported"),
    "timeout": ("server_error", "timeout"),
    "rate_limited": ("rate_limit_error", "rate_limit_exceeded"),
    "overloaded": ("rate_limit_error", "overloaded"),
    "not_ready": ("server_error", "not_ready"),
    "internal": ("server_error", None),
}


def error_body(problem: Problem) -> Json:
    """A problem in OpenAI's shape."""
    kind, code = _ERRORS[problem.type]
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": code}}


def finish_reason(reason: FinishReason | None) -> str | None:
    """OpenAI has no word for an answer that ran out of time."""
    return "length" if reason == "time" else reason


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Tokens of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True)
class Head:
    """What all chunks of an answer begin with.

    Attributes:
        object: Kind of the body.
        id: Of the answer, unique.
        created: Seconds since 1970.
    """

    object: Kind
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, started: Started | None, choices: list[Json], **more: Any) -> Json:
        """A body or chunk."""
        prefix = "cmpl" if self.object == "text_completion" else "chatcmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": self.object,
            "created": self.created,
            "model": started.model if started else "",
            "system_fingerprint": started.fingerprint if started else None,
            "choices": choices,
            **more,
        }


def completion_body(completions: Sequence[Completion], *, echo: bool) -> Json:
    """The answer to `/v1/completions`: all choices of the first prompt, then those of the next."""
    choices: list[Json] = []
    for completion in completions:
        choices += [_text_choice(len(choices) + place, completion.started, choice, echo=echo)
                    for place, choice in enumerate(completion.choices)]  # fmt: skip
    return Head("text_completion").body(completions[0].started, choices, usage=_usage_of(completions))


def chat_body(completion: Completion) -> Json:
    """The answer to `/v1/chat/completions`."""
    choices: list[Json] = [
        {
            "index": place,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if choice.tokens is None else chat_logprobs(choice.tokens),
            "finish_reason": finish_reason(choice.finish_reason),
        }
        for place, choice in enumerate(completion.choices)
    ]
    return Head("chat.completion").body(completion.started, choices, usage=_usage_of([completion]))


def text_logprobs(tokens: Iterable[Token], *, base: int = 0) -> Json:
    """Log-probabilities in the shape of `/v1/completions`.

    Args:
        tokens: The tokens.
        base: Characters in front of the text that they are of.
    """
    tokens = list(tokens)
    return {
        "tokens": [token_text(token.raw) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top_by_text(token) for token in tokens],
        "text_offset": [base + token.offset for token in tokens],
    }


def chat_logprobs(tokens: Iterable[Token]) -> Json:
    """Log-probabilities in the shape of `/v1/chat/completions`."""
    content = [
        {
            **_named(token.raw, token.logprob),
            "top_logprobs": [_named(likely.raw, likely.logprob) for likely in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def token_text(raw: bytes) -> str:
    """A token's text; of one that is no text by itself its bytes, as OpenAI writes them."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _text_choice(index: int, started: Started, choice: Choice, *, echo: bool) -> Json:
    prompt_text = started.prompt_text if echo else ""
    logprobs = None
    if choice.tokens is not None or started.prompt is not None:
        base = len(prompt_text)
        logprobs = text_logprobs(started.prompt or ())
        own = (*(choice.tokens or ()), *([at_the_end(choice.end, len(choice.text))] if choice.end else ()))
        logprobs = {name: [*values, *text_logprobs(own, base=base)[name]] for name, values in logprobs.items()}
    return {
        "index": index,
        "text": prompt_text + choice.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(choice.finish_reason),
    }


def at_the_end(end: Token, num_chars: int) -> Token:
    """The end-of-sequence token, behind a text of so many characters."""
    return Token(end.token_id, end.raw, num_chars, end.logprob, end.top)


def _top_by_text(token: Token) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for likely in token.top:
        top.setdefault(token_text(likely.raw), likely.logprob)
    top.setdefault(token_text(token.raw), token.logprob)
    return top


def _named(raw: bytes, logprob: float | None) -> Json:
    return {"token": token_text(raw), "logprob": logprob, "bytes": list(raw)}


def _usage_of(completions: Sequence[Completion]) -> Json:
    return usage(
        sum(completion.started.prompt_tokens for completion in completions),
        sum(completion.completion_tokens for completion in completions),
    )
