"""OpenTelemetry spans of requests. The library is imported only where traces are asked for (extra ``tracing``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rayloom.errors import ConfigError
from rayloom.serving.calls import Timing
from rayloom.serving.observing.records import CallRecord, Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_S = 1_000_000_000


class Spans:
    """Adds to the span that FastAPI makes of a request what became of its calls: ``queue``, ``prefill``, ``decode``.

    They are made when a call is done, from the engine's own account of it, so that nothing has to travel beside it.

    Args:
        provider: Takes the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("rayloom")

    def begin(self, record: Record) -> None:
        """Write the request's id into its span."""
        from opentelemetry import trace

        trace.get_current_span().set_attribute("rayloom.request_id", record.request_id)

    def add(self, record: Record) -> None:
        """Tell of calls that are done."""
        for number, call in enumerate(record.calls):
            if call.timing is None or call.started is None:
                continue
            attributes = _attributes(number, call)
            for name, start_ns, end_ns in _phases(call.timing):
                span = self._tracer.start_span(name, start_time=start_ns, attributes=attributes)
                span.end(end_ns)


def open_spans(endpoint: str | None) -> Spans | None:
    """Spans that are sent to a collector by OTLP over HTTP; None where none is named.

    Args:
        endpoint: Base URL, such as ``http://localhost:4318``; what OpenTelemetry's own variables say where not given.

    Raises:
        ConfigError: An endpoint is given, and the extra ``tracing`` is not installed.
    """
    by_variable = any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    if endpoint is None and not by_variable:
        return None
    try:
        return Spans(_provider(endpoint))
    except ModuleNotFoundError as error:
        message = f"traces need {error.name}: pip install 'rayloom[tracing]'"
        if endpoint is not None:
            raise ConfigError(f"traces_endpoint: {message}") from None
        logger.warning("%s is set, but %s", " or ".join(ENDPOINT_VARIABLES), message)  # perhaps meant for others
        return None


def _provider(endpoint: str | None) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces") if endpoint else OTLPSpanExporter()
    resource = Resource({"service.name": "rayloom"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _attributes(number: int, call: CallRecord) -> dict[str, str | int]:
    """By OpenTelemetry's conventions for generative AI, where it has a word."""
    assert call.started is not None
    return {
        "rayloom.call": number,
        "gen_ai.response.model": call.started.model,
        "gen_ai.usage.input_tokens": call.started.prompt_tokens,
        "gen_ai.usage.output_tokens": call.num_tokens,
    }


def _phases(timing: Timing) -> Iterator[tuple[str, int, int]]:
    """Name, first and last nanosecond since 1970."""
    start_ns = int(timing.submitted_at * _S)
    phases = (("queue", timing.queued_s), ("prefill", timing.prefill_s), ("decode", timing.decode_s))
    for name, seconds in phases:
        end_ns = start_ns + int(seconds * _S)
        yield name, start_ns, end_ns
        start_ns = end_ns
