"""``GET /metrics``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from rayloom.serving.calls import Figures
from rayloom.serving.observing.observer import Observer
from rayloom.serving.protocols import Backend
from rayloom.serving.responses import ErrorResponse


def add_metrics(app: FastAPI, backend: Backend, observer: Observer) -> None:
    """Add the route. Replicas are asked when it is called, once for all that ask at the same time.

    Args:
        app: The application.
        backend: Asks the replicas.
        observer: Has the metrics of this process.
    """
    figures = Shared(lambda: backend.figures())
    # Not as a model: FastAPI would say that errors are text, as the rest of this route is.
    refused = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}}}}

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={
            200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}},
            401: {**refused, "description": "No good API key (where keys are asked for)"},
            403: {**refused, "description": "The API key lacks the scope `metrics`"},
        },
    )
    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' format, of this process and of all replicas."""
        body, content_type = observer.metrics.text(await figures.get(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})


class Shared:
    """Asks once for all who ask at the same time.

    Args:
        ask: What gets the figures.
    """

    def __init__(self, ask: Callable[[], Awaitable[Sequence[Figures]]]) -> None:
        self._ask = ask
        self._task: asyncio.Task[Sequence[Figures]] | None = None

    async def get(self) -> Sequence[Figures]:
        """The figures. A caller that goes away leaves the others' answer alone."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._asked())
        return await asyncio.shield(self._task)

    async def _asked(self) -> Sequence[Figures]:
        return await self._ask()
