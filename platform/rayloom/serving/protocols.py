"""What answers calls: a model, and whatever stands between it and the HTTP routes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from rayloom.serving.calls import (
    Call,
    Completion,
    Event,
    Figures,
    Health,
    ModelInfo,
    Outcome,
    Part,
    Problem,
    Started,
    TextCall,
    Tokens,
)


class ServedModel(Protocol):
    """A model that writes text for many calls at once."""

    @property
    def info(self) -> ModelInfo:
        """What is served."""
        ...

    def figures(self) -> Figures:
        """What its engine does now, and has done."""
        ...

    async def complete(self, call: Call) -> Completion:
        """Write for one call, beside all others that run. When cancelled, its place is free at once.

        Raises:
            RequestError: A prompt or parameter that cannot be honoured.
        """
        ...

    def stream(self, call: Call) -> AsyncGenerator[Started | Part]:
        """As `complete`, as it is written. When closed, its place is free at once."""
        ...

    def tokens(self, call: TextCall) -> Tokens:
        """Encode or decode.

        Raises:
            RequestError: A prompt that the model cannot take, or a token that it does not have.
        """
        ...


class Backend(Protocol):
    """What the HTTP routes stand on: the model replicas, or a fake of them."""

    async def complete(self, call: Call) -> Outcome:
        """Write for one call. When cancelled, the call is dropped."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[Event]:
        """Write for one call, part by part. When closed, the call is dropped."""
        ...

    async def tokens(self, call: TextCall) -> Tokens | Problem:
        """Encode or decode."""
        ...

    async def models(self) -> Sequence[ModelInfo] | Problem:
        """What is served, adapters in their models. Wakes replicas that have not told yet."""
        ...

    async def health(self) -> Health:
        """State of the service. Answers within seconds, however busy the replicas are."""
        ...

    async def figures(self) -> Sequence[Figures]:
        """Of every replica that tells within seconds. Wakes none."""
        ...
