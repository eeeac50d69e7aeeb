"""`Generator` over the engine: requests of any parameters share its steps."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from rayloom.engine import (
    Done,
    EngineRequest,
    EngineService,
    Event,
    Failed,
    Hypothesis,
    NewToken,
    PromptScored,
    Ticket,
    Timing,
    TokenScore,
)
from rayloom.errors import RequestError
from rayloom.generation.finishing import cut_at_stop
from rayloom.generation.resolving import Addressing, Resolver
from rayloom.generation.streaming import Answer, Pieces
from rayloom.generation.types import (
    Chunk,
    GeneratedSequence,
    GenerationOutput,
    GenerationRequest,
    PromptLogprobs,
    TokenLogprob,
)
from rayloom.generation.words import decode

_LONG_TO_PREPARE = ("json_schema", "regex", "choice", "required_words", "forbidden_words", "stop_strings")


class _Written(NamedTuple):
    """What the engine has made of one request."""

    hypotheses: Sequence[Hypothesis]
    prompt_scores: Sequence[TokenScore] | None
    timing: Timing | None


class EngineGenerator:
    """Writes with an engine. Calls from several threads, or from asyncio, share its batch.

    Args:
        service: The running engine.
        resolver: Turns requests into what the engine is asked.
        addressing: Adapter, priority and owner of all requests.
    """

    def __init__(self, service: EngineService, resolver: Resolver, addressing: Addressing) -> None:
        self.service, self.resolver, self.addressing = service, resolver, addressing

    def generate(self, requests: Sequence[GenerationRequest], *, batch_size: int) -> list[GenerationOutput]:
        """Answer all requests, in their order.

        Args:
            requests: Prompts with their parameters.
            batch_size: Most of them in flight at once.

        Raises:
            RequestError: A parameter that cannot be honoured, or a prompt that is empty or too long. Nothing
                is generated then.
        """
        asked = [self._resolve(request) for request in requests]
        answers = self._run_all(asked, batch_size)
        return [self._output(*each, answers[place]) for place, each in enumerate(zip(requests, asked, strict=True))]

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Pieces of text as they are written; together they are what `generate` gives for the request.

        Abandoning the iterator stops the generation.

        Raises:
            RequestError: As `generate`; and for beams, several answers or logprobs, which cannot be streamed.
        """
        refuse_streaming(request)
        return self._stream(request, self._resolve(request))

    def addressed(self, addressing: Addressing) -> EngineGenerator:
        """The same engine, for requests of somebody else."""
        return EngineGenerator(self.service, self.resolver, addressing)

    async def generate_async(self, request: GenerationRequest) -> GenerationOutput:
        """As `generate`, for one request. Cancelling the task stops the generation."""
        asked = await self._resolve_aside(request)
        prompt_scores: Sequence[TokenScore] | None = None
        async with aclosing(self.service.stream(asked)) as events:
            async for event in events:
                if isinstance(event, PromptScored):
                    prompt_scores = event.scores
                elif isinstance(event, Done):
                    return self._output(request, asked, _Written(event.hypotheses, prompt_scores, event.timing))
        raise AssertionError("events end with Done or an error")

    async def chunks(self, request: GenerationRequest, *, start: str = "") -> AsyncGenerator[Chunk | PromptLogprobs]:
        """All that is known of a request's answers as soon as it is; closing the generator stops the generation.

        Any request can be asked: the answers of a beam search come whole, at the end.

        Args:
            request: The request.
            start: Taken off every answer that begins with it.

        Raises:
            RequestError: As `generate`.
        """
        asked = await self._resolve_aside(request)
        answers = [
            Answer(index, self._pieces(request), start=start, num_prefix=len(request.prefix_ids))
            for index in range(request.config.num_return_sequences)
        ]
        async with aclosing(self.service.stream(asked)) as events:
            async for event in events:
                if isinstance(event, NewToken):
                    score = None if event.score is None else self._logprob(event.token, event.score)
                    yield answers[event.index].add(event.token, score)
                elif isinstance(event, PromptScored):
                    yield PromptLogprobs(tuple(self._prompt_logprobs(asked, event.scores)))
                elif isinstance(event, Done):
                    for answer, hypothesis in zip(answers, event.hypotheses, strict=False):
                        last = answer.finish(self._sequence(request, asked, hypothesis))
                        yield replace(last, timing=event.timing)

    async def stream_async(self, request: GenerationRequest) -> AsyncGenerator[str]:
        """As `stream`, for asyncio. Closing the generator stops the generation."""
        refuse_streaming(request)
        asked, pieces = await self._resolve_aside(request), self._pieces(request)
        async with aclosing(self.service.stream(asked)) as events:
            async for event in events:
                if piece := self._piece(pieces, request, asked, event):
                    yield piece

    def _resolve(self, request: GenerationRequest) -> EngineRequest:
        return self.resolver.resolve(request, self.addressing)

    async def _resolve_aside(self, request: GenerationRequest) -> EngineRequest:
        """As `_resolve`. Grammars and words may take long to prepare: not on the event loop, where all others wait."""
        if any(getattr(request.config, name) for name in _LONG_TO_PREPARE):
            return await asyncio.to_thread(self._resolve, request)
        return self._resolve(request)

    def _run_all(self, asked: Sequence[EngineRequest], most: int) -> dict[int, _Written]:
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        waiting = iter(enumerate(asked))
        tickets: dict[int, Ticket] = {}
        answers: dict[int, _Written] = {}
        prompt_scores: dict[int, Sequence[TokenScore]] = {}
        try:
            while len(answers) < len(asked):
                while len(tickets) - len(answers) < most and (each := next(waiting, None)):
                    place, request = each
                    tickets[place] = self.service.submit(request, partial(_put, events, place))
                place, event = events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, PromptScored):
                    prompt_scores[place] = event.scores
                if isinstance(event, Done):
                    answers[place] = _Written(event.hypotheses, prompt_scores.get(place), event.timing)
        finally:
            for place in tickets.keys() - answers.keys():
                tickets[place].cancel()
        return answers

    def _stream(self, request: GenerationRequest, asked: EngineRequest) -> Iterator[str]:
        pieces = self._pieces(request)
        for event in self.service.events(asked):
            if piece := self._piece(pieces, request, asked, event):
                yield piece

    def _pieces(self, request: GenerationRequest) -> Pieces:
        return Pieces(self.resolver.tokenizer, request.prefix_ids, request.config.stop_strings or [])

    def _piece(self, pieces: Pieces, request: GenerationRequest, asked: EngineRequest, event: Event) -> str:
        if isinstance(event, NewToken):
            return pieces.add(event.token)
        if isinstance(event, Done):
            return pieces.finish(self._sequence(request, asked, event.hypotheses[0]).text)
        return ""

    def _output(self, request: GenerationRequest, asked: EngineRequest, written: _Written) -> GenerationOutput:
        sequences = [self._sequence(request, asked, each) for each in written.hypotheses]
        scores = written.prompt_scores
        prompt = None if scores is None else self._prompt_logprobs(asked, scores)
        return GenerationOutput(list(request.prompt_ids), sequences, prompt, written.timing)

    def _sequence(self, request: GenerationRequest, asked: EngineRequest, hypothesis: Hypothesis) -> GeneratedSequence:
        token_ids = [*request.prefix_ids, *hypothesis.tokens]
        text = decode(self.resolver.tokenizer, token_ids)
        if asked.stop is not None and asked.stop([*asked.start_ids, *hypothesis.tokens]):
            text = cut_at_stop(text, request.config.stop_strings or [])
        scores = hypothesis.logprobs
        told = zip(hypothesis.tokens, scores or (), strict=scores is not None)
        logprobs = None if scores is None else [self._logprob(*each) for each in told]
        end = None if hypothesis.end is None else self._logprob(*hypothesis.end)
        return GeneratedSequence(token_ids, text, hypothesis.reason, hypothesis.score, logprobs, end)

    def _prompt_logprobs(self, asked: EngineRequest, scores: Sequence[TokenScore]) -> list[TokenLogprob]:
        return [self._logprob(*each) for each in zip(asked.start_ids[1:], scores, strict=True)]

    def _logprob(self, token: int, score: TokenScore) -> TokenLogprob:
        return TokenLogprob(token, decode(self.resolver.tokenizer, [token]), score.logprob, score.top)


def refuse_streaming(request: GenerationRequest) -> None:
    """What cannot be told before it is done.

    Raises:
        RequestError: Names the parameter.
    """
    config = request.config
    for name, problem in (("num_beams", config.num_beams > 1), ("logprobs", config.logprobs is not None),
                          ("num_return_sequences", config.num_return_sequences > 1)):  # fmt: skip
        if problem:
            raise RequestError(f"{name} cannot be streamed: leave it out, or do not stream")


def _put(events: queue.SimpleQueue[tuple[int, Event]], place: int, event: Event) -> None:
    events.put((place, event))
