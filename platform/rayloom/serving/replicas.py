"""The processes that hold models: deployments of Ray Serve."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from ray import serve

from rayloom.config import ServingConfig
from rayloom.serving.answering import answer, answer_in_parts, tokens_of
from rayloom.serving.calls import Call, Event, Figures, ModelInfo, Outcome, Problem, TextCall, Tokens
from rayloom.serving.protocols import ServedModel
from rayloom.serving.scaling import report

ModelFactory: TypeAlias = Callable[[ServingConfig], ServedModel]


def open_text_generator(config: ServingConfig) -> ServedModel:
    """Open the artifact for serving. Imports torch, so only replicas call it."""
    from rayloom.serving.model import TextGeneratorModel

    return TextGeneratorModel.open(config)


@serve.deployment(name="Model")
class ModelReplica:
    """One copy of the model. Calls join and leave its batch at any step."""

    def __init__(self, config: ServingConfig, open_model: ModelFactory) -> None:
        logging.getLogger("rayloom").setLevel(logging.INFO)
        self._config, self._model = config, open_model(config)
        self._touched = _memory_of_adapters(config)

    async def complete(self, call: Call) -> Outcome:
        """The outcome of a call. Serve cancels it when nobody waits any longer, and that frees its place."""
        await self._touch(call)
        return await answer(self._model, call)

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """As `complete`, part by part."""
        await self._touch(call)
        async with aclosing(answer_in_parts(self._model, call)) as events:
            async for event in events:
                yield event

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """Encode or decode."""
        return tokens_of(self._model, call)

    def figures(self) -> Figures:
        """What the engine does now, and has done."""
        return replace(self._model.figures(), replica=serve.get_replica_context().replica_id.unique_id)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What scaling by tokens goes by. Serve asks for it."""
        return {} if self._config.autoscaling.target_tokens is None else report(self._model.figures())

    def describe(self) -> ModelInfo:
        """What is served."""
        return self._model.info

    async def _touch(self, call: Call) -> None:
        """Let the routers know which adapters are here, where not all can be."""
        if self._touched is not None and call.model in self._config.adapters:
            await self._touched(call.model)


def _memory_of_adapters(config: ServingConfig) -> Callable[[str], Awaitable[str]] | None:
    """Serve's account of which adapters were used here last, if it matters; the engine loads and evicts them itself."""
    if len(config.adapters) <= config.max_adapters:
        return None

    async def used(adapter: str) -> str:
        return adapter

    remembered: Callable[[str], Awaitable[str]] = serve.multiplexed(max_num_models_per_replica=config.max_adapters)(
        used
    )
    return remembered
