"""Typed stand-ins for a model and for its replicas: serving without Ray and without torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.serving.answering import answer, answer_in_parts, tokens_of
from rayloom.serving.calls import (
    Call,
    Choice,
    Completion,
    Event,
    Figures,
    Health,
    Likely,
    ModelInfo,
    Outcome,
    Part,
    Problem,
    Prompt,
    Started,
    TextCall,
    Timing,
    Token,
    Tokens,
)

QA_MODEL = ModelInfo(name="fake-qa", family="t5", task="question-answering", answers_questions=True, created=7)
TIMING = Timing(submitted_at=1_000_000.0, queued_s=0.25, prefill_s=0.5, decode_s=2.0, num_steps=5)
FIGURES = Figures(
    "fake-qa",
    {
        "num_running": 3, "num_waiting": 2, "num_sequences": 5, "max_sequences": 8, "num_used_blocks": 40,
        "num_idle_blocks": 7, "num_blocks": 100, "num_seated_tokens": 900, "num_matched_tokens": 300,
        "num_preempted": 1, "num_steps": 1234, "num_adapters": 2, "max_adapters": 4,
    },
    {"tuned": 3},
    "replica-1",
)  # fmt: skip
PLAIN_MODEL = ModelInfo(name="fake-lm", family="gpt2", task="language-modeling", answers_questions=False)


@dataclass
class FakeModel:
    """Writes its prompt in capitals, cut at max_new_tokens words; refuses 'bad' and breaks on 'crash'.

    A token is a word; word number i of an answer has log-probability -(i + 1) / 2. A stream waits for ever at 'hang'
    and fails at 'break'.
    """

    info: ModelInfo = QA_MODEL
    calls: list[Call] = field(default_factory=list)

    async def complete(self, call: Call) -> Completion:
        self.calls.append(call)
        words, kept, config = self._written(call)
        tokens = _tokens(kept) if config.logprobs is not None else None
        num_answers = config.num_return_sequences
        choice = Choice(
            text="" if call.writes_nothing else " ".join(kept),
            finish_reason="stop" if kept == words else "length",
            token_ids=tuple(range(len(kept))),
            tokens=() if call.writes_nothing and tokens else tokens,
            end=_token(b"</s>", 0, 99) if tokens is not None and kept == words else None,
        )
        num_tokens = 0 if call.writes_nothing else len(kept) * (call.best_of or num_answers)
        return Completion(self._started(call), (choice,) * num_answers, num_tokens, TIMING)

    def figures(self) -> Figures:
        return FIGURES

    async def stream(self, call: Call) -> AsyncGenerator[Started | Part]:
        self.calls.append(call)
        words, kept, config = self._written(call)
        yield self._started(call)
        tokens = _tokens(kept)
        for place, token in enumerate(tokens):
            if kept[place] == "HANG":
                await asyncio.Event().wait()
            if kept[place] == "BREAK":
                raise RuntimeError("secret detail")
            for index in range(config.num_return_sequences):
                shown = (token,) if config.logprobs is not None else ()
                yield Part(index, (" " if place else "") + kept[place], 1, shown)
        for index in range(config.num_return_sequences):
            end = _token(b"</s>", 0, 99) if config.logprobs is not None and kept == words else None
            yield Part(index, "", 0, (), end, "stop" if kept == words else "length", TIMING)

    def tokens(self, call: TextCall) -> Tokens:
        if call.prompt is None:
            return Tokens(" ".join(f"w{token}" for token in call.token_ids), call.token_ids, 64)
        words = _words(call.prompt)
        return Tokens(call.prompt.text, tuple(range(len(words) + call.adds_special_tokens)), 64)

    def _written(self, call: Call) -> tuple[list[str], list[str], GenerationConfig]:
        config = GenerationConfig(do_sample=True).merged(**call.parameters)
        if call.prompt.text == "bad":
            raise RequestError("the prompt is bad")
        if call.prompt.text == "crash":
            raise RuntimeError("secret detail")
        words = [word.upper() for word in _words(call.prompt)]
        return words, words[: config.max_new_tokens], config

    def _started(self, call: Call) -> Started:
        words = _words(call.prompt)
        scored = None
        if call.scores_prompt:
            scored = (Token(0, words[0].encode(), 0, None), *_tokens(words)[1:])
        text = " ".join(words) if call.echoes else ""
        return Started(self.info.name, "fp_fake", len(words), text, scored, tuple(range(len(words))))


def _words(prompt: Prompt) -> list[str]:
    if prompt.token_ids is not None:
        return [f"w{token}" for token in prompt.token_ids]
    if prompt.messages is not None:
        return " ".join(message["content"] for message in prompt.messages).split()
    return f"{prompt.context or ''} {prompt.text}".split()


def _tokens(words: list[str]) -> tuple[Token, ...]:
    offsets = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    return tuple(
        _token(word.encode(), place, offset) for place, (word, offset) in enumerate(zip(words, offsets, strict=True))
    )


def _token(raw: bytes, place: int, offset: int) -> Token:
    logprob = -(place + 1) / 2
    return Token(place, raw, offset, logprob, (Likely(500, b"likely", -0.25), Likely(place, raw, logprob)))


@dataclass
class FakeBackend:
    """Answers every call as a replica does, after a delay; or gives a fixed outcome."""

    model_: FakeModel = field(default_factory=FakeModel)
    delay_s: float = 0.0
    outcome: Outcome | None = None
    state: Health = field(default_factory=lambda: Health("ok", 1, QA_MODEL))
    error: Exception | None = None
    num_cancelled: int = 0
    num_running: int = 0

    async def complete(self, call: Call) -> Outcome:
        self.num_running += 1
        try:
            await asyncio.sleep(self.delay_s)
            if self.error:
                raise self.error
            return self.outcome or await answer(self.model_, call)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        self.num_running += 1
        is_done = False
        try:
            await asyncio.sleep(self.delay_s)
            if self.error:
                raise self.error
            if isinstance(self.outcome, Problem):
                yield self.outcome
                return
            async with aclosing(answer_in_parts(self.model_, call)) as events:
                async for event in events:
                    yield event
            is_done = True
        finally:
            self.num_running -= 1
            self.num_cancelled += not is_done

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        return tokens_of(self.model_, call)

    async def models(self) -> Sequence[ModelInfo] | Problem:
        return self.outcome if isinstance(self.outcome, Problem) else [self.model_.info]

    async def health(self) -> Health:
        return self.state

    async def figures(self) -> Sequence[Figures]:
        return [self.model_.figures()]


def post_all(url: str, path: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All bodies at once, answers in order."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: httpx.post(f"{url}{path}", json=body, timeout=120.0), bodies))
