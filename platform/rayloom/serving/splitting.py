"""Names that stand for several models: A/B splits and shadow traffic.

A caller stays on its arm: which one is a hash of who it is (the `user` field, else the API key, else the request).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from rayloom.config import RouteConfig
from rayloom.serving.arms import ArmObserver, Watch, arm_of
from rayloom.serving.calls import (
    Call,
    Completion,
    Event,
    Figures,
    Health,
    ModelInfo,
    Outcome,
    Problem,
    Started,
    TextCall,
    Tokens,
)
from rayloom.serving.protocols import Backend
from rayloom.serving.retrying import seeded

logger = logging.getLogger(__name__)

_MOST_COPIES = 64
_LAST = 1_000_000
"""Priority of copies: where they share a batch with what they are copies of, they go last."""


class SplitBackend:
    """Sends calls for a route to one of its arms, and copies to its shadow.

    Args:
        inner: Has the models that the routes name.
        routes: By the name that callers use.
        observer: Is told of every call to an arm.
        shadow_timeout_s: Seconds that a copy may take.
    """

    def __init__(
        self, inner: Backend, routes: Mapping[str, RouteConfig], observer: ArmObserver, *, shadow_timeout_s: float
    ) -> None:
        self._inner, self._routes, self._observer = inner, routes, observer
        self._shadow_timeout_s = shadow_timeout_s
        self._copies: set[asyncio.Task[None]] = set()

    async def complete(self, call: Call) -> Outcome:
        """See `Backend`."""
        route = call.model or ""
        if route not in self._routes:
            return await self._inner.complete(call)
        call = self._chosen(route, call)
        watch = Watch(self._observer, route, call.model or "")
        try:
            outcome = await self._inner.complete(call)
            watch.answered(outcome)
        finally:
            watch.end()
        if isinstance(outcome, Completion):
            return replace(outcome, started=replace(outcome.started, arm=call.model or ""))
        return outcome

    async def stream(self, call: Call) -> AsyncGenerator[Event]:
        """See `Backend`."""
        route = call.model or ""
        is_routed = route in self._routes
        call = self._chosen(route, call) if is_routed else call
        watch = Watch(self._observer, route, call.model or "")
        try:
            async with aclosing(self._inner.stream(call)) as events:
                async for event in events:
                    watch.told(event)
                    yield replace(event, arm=call.model or "") if is_routed and isinstance(event, Started) else event
            watch.finished()
        finally:
            if is_routed:
                watch.end()

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """See `Backend`. Of a route, its largest arm's."""
        if config := self._routes.get(call.model or ""):
            call = replace(call, model=max(config.split, key=config.split.__getitem__))
        return await self._inner.tokens(call)

    async def models(self) -> Sequence[ModelInfo] | Problem:
        """See `Backend`. Routes are told of, too."""
        found = await self._inner.models()
        if isinstance(found, Problem):
            return found
        return [*found, *(ModelInfo(route, "", "") for route in self._routes)]

    async def health(self) -> Health:
        """See `Backend`."""
        return await self._inner.health()

    async def figures(self) -> Sequence[Figures]:
        """See `Backend`."""
        return await self._inner.figures()

    async def settled(self) -> None:
        """Wait for the copies that are under way."""
        await asyncio.gather(*self._copies, return_exceptions=True)

    def _chosen(self, route: str, call: Call) -> Call:
        """The call for its arm. A copy is on its way to the shadow, with the same seed."""
        config, call = self._routes[route], seeded(call)
        if config.shadow is not None:
            self._copy(route, replace(call, model=config.shadow, priority=call.priority + _LAST))
        return replace(call, model=arm_of(route, config.split, call.sticky))

    def _copy(self, route: str, call: Call) -> None:
        """Asks the shadow, unless it is so far behind that copies pile up."""
        watch = Watch(self._observer, route, call.model or "", is_shadow=True)
        if len(self._copies) >= _MOST_COPIES:
            watch.end()
            return
        task = asyncio.create_task(self._ask_shadow(call, watch))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _ask_shadow(self, call: Call, watch: Watch) -> None:
        try:
            async with asyncio.timeout(self._shadow_timeout_s):
                watch.answered(await self._inner.complete(call))
        except Exception as error:  # whatever it is, it is the shadow's alone
            watch.status = 504 if isinstance(error, TimeoutError) else 500
            logger.warning("the shadow '%s' failed with %s", call.model, type(error).__name__)
        finally:
            watch.end()
