"""Typed stand-ins for a model and for its replicas: serving without Ray and without torch."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.serving.answering import answer
from rayloom.serving.calls import Call, Completion, Health, ModelInfo, Outcome, Prompt

QA_MODEL = ModelInfo(name="fake-qa", family="t5", task="question-answering", answers_questions=True)
PLAIN_MODEL = ModelInfo(name="fake-lm", family="gpt2", task="language-modeling", answers_questions=False)


@dataclass
class FakeModel:
    """Writes its prompt in capitals, cut at max_new_tokens words; refuses 'bad' and breaks on 'crash'."""

    info: ModelInfo = QA_MODEL
    calls: list[Call] = field(default_factory=list)

    async def complete(self, call: Call) -> Completion:
        self.calls.append(call)
        return self._completion(call.prompt, GenerationConfig(do_sample=True).merged(**call.parameters))

    def _completion(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        if prompt.text == "bad":
            raise RequestError("the prompt is bad")
        if prompt.text == "crash":
            raise RuntimeError("secret detail")
        words = f"{prompt.context or ''} {prompt.text}".upper().split()
        kept = words[: config.max_new_tokens]
        return Completion(
            model=self.info.name,
            texts=tuple(" ".join(kept) for _ in range(config.num_return_sequences)),
            finish_reason="stop" if kept == words else "length",
            prompt_tokens=len(words),
            completion_tokens=len(kept) * config.num_return_sequences,
            logprobs=([{"token": word, "logprob": -0.5} for word in kept],) if config.logprobs is not None else None,
        )


@dataclass
class FakeBackend:
    """Answers every call as a replica does, after a delay; or gives a fixed outcome."""

    model: FakeModel = field(default_factory=FakeModel)
    delay_s: float = 0.0
    outcome: Outcome | None = None
    state: Health = field(default_factory=lambda: Health("ok", 1, QA_MODEL))
    error: Exception | None = None
    num_cancelled: int = 0

    async def complete(self, call: Call) -> Outcome:
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error:
            raise self.error
        return self.outcome or await answer(self.model, call)

    async def health(self) -> Health:
        return self.state


def post_all(url: str, path: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All bodies at once, answers in order."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: httpx.post(f"{url}{path}", json=body, timeout=120.0), bodies))
