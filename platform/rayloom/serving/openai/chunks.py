"""From lists of events to the chunks of OpenAI's streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rayloom.serving.calls import Part, Problem, Started
from rayloom.serving.openai.answers import (
    Head,
    Json,
    at_the_end,
    chat_logprobs,
    error_body,
    finish_reason,
    text_logprobs,
    usage,
)
from rayloom.serving.sse import DONE
from rayloom.serving.streams import Tagged


class Chunks:
    """Chunks of one stream.

    Args:
        num_answers: Answers per prompt.
        includes_usage: Whether the last chunk is to say the usage.
    """

    head: Head

    def __init__(self, *, num_answers: int, includes_usage: bool) -> None:
        self._num_answers, self._includes_usage = num_answers, includes_usage
        self._started: dict[int, Started] = {}
        self._num_tokens = 0

    def of(self, events: Sequence[Tagged]) -> Iterator[Json]:
        """Chunks for what has come."""
        for number, event in events:
            if isinstance(event, Problem):
                yield error_body(event)
            elif isinstance(event, Started):
                self._started[number] = event
                for place in range(self._num_answers):
                    yield from self._beginning(number * self._num_answers + place, event)
            else:
                self._num_tokens += event.num_tokens
                if event.text or event.tokens or event.finish_reason:
                    yield self._chunk(number, self._choice(number, event))

    def last(self) -> Iterator[Json | str]:
        """What ends a stream without problems."""
        if self._includes_usage:
            prompt_tokens = sum(started.prompt_tokens for started in self._started.values())
            yield self.head.body(self._any(), [], usage=usage(prompt_tokens, self._num_tokens))
        yield DONE

    def _beginning(self, index: int, started: Started) -> Iterator[Json]:
        """What an answer begins with before it has a token."""
        raise NotImplementedError

    def _choice(self, number: int, part: Part) -> Json:
        raise NotImplementedError

    def _chunk(self, number: int, choice: Json) -> Json:
        more = {"usage": None} if self._includes_usage else {}
        return self.head.body(self._started[number], [choice], **more)

    def _any(self) -> Started | None:
        return next(iter(self._started.values()), None)


class CompletionChunks(Chunks):
    """Chunks of `/v1/completions`.

    Args:
        num_answers: See `Chunks`.
        includes_usage: See `Chunks`.
        echo: Whether answers begin with the prompt.
        logprobs: Whether log-probabilities were asked for.
    """

    def __init__(self, *, num_answers: int, includes_usage: bool, echo: bool, logprobs: bool) -> None:
        super().__init__(num_answers=num_answers, includes_usage=includes_usage)
        self.head = Head("text_completion")
        self._echo, self._logprobs = echo, logprobs
        self._lengths: Counter[int] = Counter()

    def _beginning(self, index: int, started: Started) -> Iterator[Json]:
        if self._echo:
            logprobs = None if started.prompt is None else text_logprobs(started.prompt)
            choice = {"index": index, "text": started.prompt_text, "logprobs": logprobs, "finish_reason": None}
            yield self._chunk(index // self._num_answers, choice)

    def _choice(self, number: int, part: Part) -> Json:
        index = number * self._num_answers + part.index
        self._lengths[index] += len(part.text)
        base = len(self._started[number].prompt_text) if self._echo else 0
        end = [at_the_end(part.end, self._lengths[index])] if part.end else []
        logprobs = text_logprobs([*part.tokens, *end], base=base) if self._logprobs else None
        reason = finish_reason(part.finish_reason)
        return {"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": reason}


class ChatChunks(Chunks):
    """Chunks of `/v1/chat/completions`.

    Args:
        num_answers: See `Chunks`.
        includes_usage: See `Chunks`.
        logprobs: Whether log-probabilities were asked for.
    """

    def __init__(self, *, num_answers: int, includes_usage: bool, logprobs: bool) -> None:
        super().__init__(num_answers=num_answers, includes_usage=includes_usage)
        self.head = Head("chat.completion.chunk")
        self._logprobs = logprobs

    def _beginning(self, index: int, started: Started) -> Iterator[Json]:
        delta = {"role": "assistant", "content": ""}
        yield self._chunk(0, {"index": index, "delta": delta, "logprobs": None, "finish_reason": None})

    def _choice(self, number: int, part: Part) -> Json:
        return {
            "index": part.index,
            "delta": {"content": part.text} if part.text else {},
            "logprobs": chat_logprobs(part.tokens) if self._logprobs and part.tokens else None,
            "finish_reason": finish_reason(part.finish_reason),
        }
