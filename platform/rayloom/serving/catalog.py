"""Several models and their adapters, each found by its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from rayloom.serving.answering import model_not_found
from rayloom.serving.calls import (
    Call,
    Event,
    Figures,
    Following,
    Health,
    ModelInfo,
    Outcome,
    Problem,
    Status,
    TextCall,
    Tokens,
)
from rayloom.serving.protocols import Backend

Follows: TypeAlias = Callable[[], Awaitable[Mapping[str, Following]]]
"""Tells of each model that follows a stage, by its name."""

UNNAMED = ""
"""Name of a single model that has the name that its artifact says: only its replicas know it."""


async def _nothing_followed() -> Mapping[str, Following]:
    return {}


class CatalogBackend:
    """Sends each call to the model that it names. Nothing is reached but what stands in the catalog.

    Args:
        models: By name.
        adapters: Adapters, and the model that each belongs to.
        also: Other names that callers may use here, for messages.
        follows: Tells which models follow a stage.
    """

    def __init__(
        self,
        models: Mapping[str, Backend],
        adapters: Mapping[str, str],
        *,
        also: Sequence[str] = (),
        follows: Follows = _nothing_followed,
    ) -> None:
        self._models, self._adapters, self._follows = models, adapters, follows
        self._known = [*(name for name in models if name), *adapters, *also]

    async def complete(self, call: Call) -> Outcome:
        """See `Backend`."""
        found = self._find(call.model)
        return found if isinstance(found, Problem) else await found.complete(call)

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """See `Backend`."""
        found = self._find(call.model)
        if isinstance(found, Problem):
            yield found
            return
        async with aclosing(found.stream(call)) as events:
            async for event in events:
                yield event

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """See `Backend`."""
        found = self._find(call.model)
        return found if isinstance(found, Problem) else await found.tokens(call)

    async def models(self) -> Sequence[ModelInfo] | Problem:
        """See `Backend`. Models that are asleep or not open yet are told by their names alone: none is woken."""
        if UNNAMED in self._models:
            return await self._models[UNNAMED].models()
        states = await self._states()
        return [state.model or self._name_only(name) for name, state in states.items()]

    async def health(self) -> Health:
        """See `Backend`. The service is as well as the best of its models, for each is on its own."""
        states, follows = await asyncio.gather(self._states(), self._follows())
        states = {name: replace(state, following=follows.get(name)) for name, state in states.items()}
        if len(states) == 1:
            return next(iter(states.values()))
        order: tuple[Status, ...] = ("ok", "idle", "not_ready")
        status = min((state.status for state in states.values()), key=order.index)
        return Health(status, sum(state.num_replicas for state in states.values()), models=states)

    async def figures(self) -> Sequence[Figures]:
        """See `Backend`."""
        told = await asyncio.gather(*(model.figures() for model in self._models.values()))
        return [each for figures in told for each in figures]

    async def _states(self) -> Mapping[str, Health]:
        states = await asyncio.gather(*(model.health() for model in self._models.values()))
        return dict(zip(self._models, states, strict=True))

    def _find(self, name: str | None) -> Backend | Problem:
        given = name or UNNAMED
        if given in self._adapters:
            return self._models[self._adapters[given]]
        if given in self._models and given != UNNAMED:
            return self._models[given]
        if UNNAMED in self._models or (name is None and len(self._models) == 1):
            return next(iter(self._models.values()))  # which knows its name, and says so if it is another
        if name is None:
            message = f"there are several models here; name one: {', '.join(self._known)}"
            return Problem(400, "invalid_request", message, param="model")
        return model_not_found(name, self._known)

    def _name_only(self, name: str) -> ModelInfo:
        adapters = [adapter for adapter, model in self._adapters.items() if model == name]
        return ModelInfo(name, "", "", adapters=tuple(ModelInfo(each, "", "", parent=name) for each in adapters))
