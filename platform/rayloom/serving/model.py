"""A `TextGenerator` as a `ServedModel`. With `prompts` the part of this room that imports torch; only replicas do."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Self

from rayloom import engine
from rayloom.config import GenerationConfig, ServingConfig
from rayloom.generation import Chunk, GeneratedSequence, PromptLogprobs, TextGenerator, TokenLogprob
from rayloom.generation.engine_generator import EngineGenerator
from rayloom.generation.planning import request_lengths
from rayloom.generation.resolving import Addressing
from rayloom.generation.streaming import Answer, Pieces
from rayloom.generation.words import token_pieces
from rayloom.serving.calls import (
    Call,
    Choice,
    Completion,
    Figures,
    Likely,
    ModelInfo,
    Part,
    Prompt,
    Started,
    TextCall,
    Timing,
    Token,
    Tokens,
)
from rayloom.serving.prompts import Asked, PromptReader, offsets_in

_LEAST = -9999.0
"""Log-probability of what is impossible: JSON has no word for minus infinity."""


class TextGeneratorModel:
    """Serves a text generator.

    Args:
        generator: The opened model.
        max_time_s: Seconds after which a call stops in any case: nobody waits for it any longer.
        parent: Name of the model, if this is an adapter of it.
        changes: To the generation parameters of the artifact, and of its adapters' artifacts.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        max_time_s: float,
        parent: str | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self._generator, self._max_time_s = generator, max_time_s
        generator.defaults = generator.parameters(changes or {})
        self._prompts = PromptReader(generator)
        self._pieces = token_pieces(generator.encoder.tokenizer).by_id
        self._fingerprint = _fingerprint(generator)
        self._adapters = {
            name: TextGeneratorModel(
                generator.adapted(name), max_time_s=max_time_s, parent=generator.name, changes=changes
            )
            for name in generator.adapters
        }
        adapters = tuple(adapter.info for adapter in self._adapters.values())
        self._info = replace(_info(generator), parent=parent, adapters=adapters)
        self._tokens_in_flight = 0

    @classmethod
    def open(cls, config: ServingConfig) -> Self:
        """Open the artifact, and replay its golden prompts unless the config says not to.

        Raises:
            UserError: The artifact or model cannot be opened, or a value in ``generation`` makes no sense.
        """
        generator = TextGenerator(
            config.artifact,
            precision=config.precision,
            engine=config.engine,
            max_batch_size=config.max_batch_size,
            cache_gib=config.cache_gib,
            replay_golden=config.replay_golden,
            adapters=config.adapters,
            max_adapters=config.max_adapters,
        )
        generator.release_model()
        if config.name is not None:
            generator.name = config.name
        return cls(generator, max_time_s=config.request_timeout_s, changes=config.generation)

    @property
    def info(self) -> ModelInfo:
        """See `ServedModel`."""
        return self._info

    def figures(self) -> Figures:
        """See `ServedModel`."""
        numbers = asdict(self._generator.generator.service.stats())
        return Figures(
            self._info.name,
            adapters=numbers.pop("adapter_requests"),
            numbers=numbers,
            tokens_in_flight=sum(each._tokens_in_flight for each in (self, *self._adapters.values())),
        )

    async def complete(self, call: Call) -> Completion:
        """See `ServedModel`."""
        if adapter := self._adapters.get(call.model or ""):
            return await adapter.complete(call)
        asked = self._ask(call)
        with self._counted(asked):
            output = await self._writer(call).generate_async(asked.request)
        started = self._started(asked, output.prompt_logprobs)
        if call.writes_nothing:
            return Completion(started, (Choice("", "length"),), 0, _timing(output.timing))
        num_tokens = sum(len(sequence.token_ids) for sequence in output.sequences)
        sequences = output.sequences
        if call.best_of is not None:
            sequences = sorted(sequences, key=_likelihood, reverse=True)[: _num_wanted(call)]
        shows_tokens = call.parameters.get("logprobs") is not None
        choices = [self._choice(asked, sequence, shows_tokens=shows_tokens) for sequence in sequences]
        return Completion(started, tuple(choices), num_tokens, _timing(output.timing))

    async def stream(self, call: Call) -> AsyncGenerator[Started | Part]:
        """See `ServedModel`. Nothing is told before there is a first token: until then the call may be refused."""
        asking = self._adapters.get(call.model or "", self)
        async with aclosing(asking._written(call)) as events:
            async for event in events:
                yield event

    async def _written(self, call: Call) -> AsyncGenerator[Started | Part]:
        asked = self._ask(call)
        prompt_logprobs: Sequence[TokenLogprob] | None = None
        has_started = False
        with self._counted(asked):
            async with aclosing(self._writer(call).chunks(asked.request, start=asked.start)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, PromptLogprobs):
                        prompt_logprobs = chunk.logprobs
                        continue
                    if not has_started:
                        yield self._started(asked, prompt_logprobs)
                        has_started = True
                    if not call.writes_nothing:
                        yield self._part(chunk)
        if call.writes_nothing:
            yield Part(0, "", finish_reason="length")

    def tokens(self, call: TextCall) -> Tokens:
        """See `ServedModel`."""
        if adapter := self._adapters.get(call.model or ""):
            return adapter.tokens(call)
        if call.prompt is None:
            text = self._prompts.text(Prompt(token_ids=call.token_ids))
            return Tokens(text, call.token_ids, self._info.max_positions)
        token_ids = self._prompts.token_ids(call.prompt, adds_special_tokens=call.adds_special_tokens)
        return Tokens(call.prompt.text, tuple(token_ids), self._info.max_positions)

    def _ask(self, call: Call) -> Asked:
        changes: dict[str, Any] = dict(call.parameters)
        if call.best_of is not None:
            changes |= {"num_return_sequences": call.best_of, "logprobs": changes.get("logprobs", 0)}
        config = self._generator.parameters(changes)
        max_time = self._max_time_s if config.max_time is None else min(config.max_time, self._max_time_s)
        seed = call.drawn_seed if config.seed is None else config.seed
        config = config.model_copy(update={"max_time": max_time, "seed": seed})
        return self._prompts.ask(call.prompt, config, prompt_logprobs=_num_scored(call, config), echoes=call.echoes)

    @contextmanager
    def _counted(self, asked: Asked) -> Iterator[None]:
        """Counts the tokens of a call while it lasts: those of its prompt, and those that it may write."""
        lengths = request_lengths(asked.request, self._generator.generator.resolver.window)
        num_tokens = len(asked.request.prompt_ids) + lengths.max_new_tokens * asked.request.config.num_return_sequences
        self._tokens_in_flight += num_tokens
        try:
            yield
        finally:
            self._tokens_in_flight -= num_tokens

    def _writer(self, call: Call) -> EngineGenerator:
        generator = self._generator.generator
        own = generator.addressing
        return generator.addressed(Addressing(adapter=own.adapter, priority=call.priority, owner=call.owner))

    def _started(self, asked: Asked, logprobs: Sequence[TokenLogprob] | None) -> Started:
        prompt_ids = asked.request.prompt_ids
        return Started(
            model=self._info.name,
            fingerprint=self._fingerprint,
            prompt_tokens=len(prompt_ids),
            prompt_text=asked.text,
            prompt=None if logprobs is None else self._prompt_tokens(asked, logprobs),
            prompt_ids=tuple(prompt_ids),
            adapter=self._info.name if self._info.parent is not None else "",
        )

    def _prompt_tokens(self, asked: Asked, logprobs: Sequence[TokenLogprob]) -> tuple[Token, ...]:
        ids = asked.request.prompt_ids
        raws = [self._raw(token) for token in ids]
        first = Token(ids[0], raws[0], 0, None)
        offsets = offsets_in(asked.text, raws)[1:]
        return (first, *(self._token(*each) for each in zip(logprobs[: len(offsets)], offsets, strict=True)))

    def _choice(self, asked: Asked, sequence: GeneratedSequence, *, shows_tokens: bool) -> Choice:
        request = asked.request
        pieces = Pieces(self._generator.encoder.tokenizer, request.prefix_ids, request.config.stop_strings or [])
        part = self._part(Answer(0, pieces, start=asked.start, num_prefix=len(request.prefix_ids)).finish(sequence))
        return Choice(
            text=part.text,
            finish_reason=sequence.finish_reason,
            token_ids=tuple(sequence.token_ids),
            tokens=part.tokens if shows_tokens else None,
            end=part.end if shows_tokens else None,
            score=sequence.score,
        )

    def _part(self, chunk: Chunk) -> Part:
        tokens = tuple(self._token(*each) for each in zip(chunk.logprobs, chunk.offsets, strict=True))
        end = None if chunk.end is None else self._token(chunk.end, len(chunk.text))
        timing = _timing(chunk.timing)
        return Part(chunk.index, chunk.text, chunk.num_tokens, tokens, end, chunk.finish_reason, timing)

    def _token(self, logprob: TokenLogprob, offset: int) -> Token:
        top = tuple(Likely(token, self._raw(token), max(value, _LEAST)) for token, value in logprob.top)
        return Token(logprob.token_id, self._raw(logprob.token_id), offset, max(logprob.logprob, _LEAST), top)

    def _raw(self, token: int) -> bytes:
        return (self._pieces[token] if token < len(self._pieces) else None) or b""


def _timing(timing: engine.Timing | None) -> Timing | None:
    return None if timing is None else Timing(**asdict(timing))


def _num_wanted(call: Call) -> int:
    wanted: int = call.parameters.get("num_return_sequences", 1)
    return wanted


def _num_scored(call: Call, config: GenerationConfig) -> int | None:
    return (config.logprobs or 0) if call.scores_prompt else None


def _likelihood(sequence: GeneratedSequence) -> float:
    """Mean log-probability of an answer's tokens, its end included."""
    scores = [token.logprob for token in (*(sequence.logprobs or ()), *([sequence.end] if sequence.end else ()))]
    return sum(scores) / len(scores) if scores else float("-inf")


def _info(generator: TextGenerator) -> ModelInfo:
    template, artifact = generator.template, generator.artifact
    return ModelInfo(
        name=generator.name,
        family=generator.family.name,
        task=template.task,
        answers_questions=template.task != "language-modeling",
        takes_context=template.context_prompt is not None,
        created=0 if artifact is None else int(datetime.fromisoformat(artifact.manifest.created).timestamp()),
        max_positions=generator.generator.resolver.window.max_positions,
    )


def _fingerprint(generator: TextGenerator) -> str:
    """Of all that decides the answers: the artifact's hashes, engine, precision and the default parameters."""
    artifact = generator.artifact
    source = generator.name if artifact is None else artifact.manifest.model_dump_json()
    whole = "\n".join([source, generator.engine, generator.precision, generator.defaults.model_dump_json()])
    return f"fp_{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
