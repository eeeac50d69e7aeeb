"""Prometheus metrics of the ingress, and of the replicas that it asks when it is scraped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayloom.serving.calls import Figures
from rayloom.serving.observing.arms import ArmMetrics
from rayloom.serving.observing.records import CallRecord, Record

MOST_NAMES = 200
"""Models, and adapters, that get a label of their own; further ones are ``other``."""

_OPEN_METRICS = "application/openmetrics-text"
_MODEL = ("model", "adapter")
_REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

# Of `EngineStats`: what becomes of each number. Counts end in _total.
_GAUGES = {
    "num_running": ("running_requests", "Calls that are in the batch"),
    "num_waiting": ("waiting_requests", "Calls that wait in the engine for room"),
    "num_sequences": ("running_sequences", "Sequences that are in the batch"),
    "max_sequences": ("max_sequences", "Sequences that the batch holds"),
    "num_used_blocks": ("cache_used_blocks", "Cache blocks (16 tokens) that calls hold"),
    "num_idle_blocks": ("cache_idle_blocks", "Cache blocks kept for prompts that begin alike"),
    "num_blocks": ("cache_blocks", "Cache blocks"),
    "num_adapters": ("adapters", "Adapters in memory"),
    "max_adapters": ("max_adapters", "Adapters that fit"),
}
_COUNTS = {
    "num_seated_tokens": ("prefix_tokens", "Tokens of calls when they came to run"),
    "num_matched_tokens": ("prefix_hit_tokens", "Those of them that the cache had already"),
    "num_preempted": ("preemptions", "Calls that had to make room for others"),
    "num_steps": ("steps", "Steps computed"),
}


class Names:
    """Bounds a label: names that the service itself has told, and not too many.

    Args:
        most: Further names are ``other``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Of a name that comes from the service."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return "other"
            self._known.add(name)
        return name

    def known(self, name: str | None) -> str:
        """Of a name that a client has sent: empty unless the service has told it, too."""
        return name if name in self._known and name is not None else ""


class EngineFamilies(Collector):
    """What the replicas have told last, as metrics."""

    def __init__(self) -> None:
        self.figures: Sequence[Figures] = ()

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        for field, (name, text) in _GAUGES.items():
            yield self._family(GaugeMetricFamily(f"rayloom_engine_{name}", text, labels=("model", "replica")), field)
        for field, (name, text) in _COUNTS.items():
            yield self._family(CounterMetricFamily(f"rayloom_engine_{name}", text, labels=("model", "replica")), field)
        replicas = GaugeMetricFamily("rayloom_engine_replicas", "Replicas that answered", labels=("model",))
        for model in sorted({each.model for each in self.figures}):
            replicas.add_metric((model,), sum(each.model == model for each in self.figures))
        yield replicas
        text, labels = "Calls in flight, of adapters in memory or in use", (*_MODEL, "replica")
        adapters = GaugeMetricFamily("rayloom_engine_adapter_requests", text, labels=labels)
        for each in self.figures:
            for adapter, number in each.adapters.items():
                adapters.add_metric((each.model, adapter, each.replica), number)
        yield adapters

    def _family(self, family: GaugeMetricFamily | CounterMetricFamily, field: str) -> Metric:
        for each in self.figures:
            family.add_metric((each.model, each.replica), each.numbers[field])
        return family


class Metrics:
    """The metrics of one ingress, in a registry of their own.

    Attributes:
        arms: Those of A/B splits.
        in_flight: Requests that are being answered.
        repeated: Calls that were asked again, by the model's name in the config.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engines = EngineFamilies()
        self.registry.register(self._engines)
        self._models, self._adapters = Names(MOST_NAMES), Names(MOST_NAMES)
        self._requests = self._counter("requests", "HTTP requests", "route", *_MODEL, "status")
        self._rejections = self._counter("rejections", "Requests that ended in a problem", "route", "model", "reason")
        self._gone = self._counter("clients_gone", "Clients that went away before the end", "route", "model")
        self.repeated = self._counter("repeated_calls", "Calls asked again, for their replica was lost", "model")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", *_MODEL)
        self._generated_tokens = self._counter("generated_tokens", "Tokens written", *_MODEL)
        self._seconds = self._histogram("request", "Whole requests", _REQUEST_S, "route")
        self._queue = self._histogram("queue", "From the engine's door to a place in the batch", _FIRST_S)
        self._first = self._histogram("time_to_first_token", "From the request to its first token", _FIRST_S)
        self._between = self._histogram("inter_token", "Between a call's tokens, on average", _TOKEN_S)
        self._gaps = self._histogram("stream_gap", "Between the parts of a stream", _TOKEN_S)
        text = "HTTP requests that are being answered, those of the page's own files and of probes left out"
        self.in_flight = Gauge("rayloom_requests_in_flight", text, registry=self.registry)
        self.arms = ArmMetrics(self.registry, _REQUEST_S)

    def add(self, record: Record) -> None:
        """A request has ended."""
        started = record.started
        model = self._models.label(started.model) if started else self._models.known(record.wanted_model)
        adapter = self._adapters.label(started.adapter) if started and started.adapter else ""
        self._requests.labels(record.route, model, adapter, str(record.status)).inc()
        if record.reason and not record.is_gone:
            self._rejections.labels(record.route, model, record.reason).inc()
        if record.is_gone:
            self._gone.labels(record.route, model).inc()
        self._seconds.labels(record.route, model, adapter).observe(record.duration_s)
        if started:
            self._add_writing(record, model, adapter)

    def text(self, figures: Sequence[Figures], accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type.

        Args:
            figures: Of the replicas.
            accept: Header of the request.
        """
        self._engines.figures = [self._bounded(each) for each in figures]
        # The version that a client names would be taken as it is, whatever it says.
        encode, content_type = choose_encoder(_OPEN_METRICS if _OPEN_METRICS in accept else "")
        body: bytes = encode(self.registry)
        return body, content_type

    def _bounded(self, figures: Figures) -> Figures:
        """With names of adapters that may be labels; those that may not are counted together."""
        adapters: dict[str, int] = {}
        for name, number in figures.adapters.items():
            label = self._adapters.label(name)
            adapters[label] = adapters.get(label, 0) + number
        return dataclasses.replace(figures, model=self._models.label(figures.model), adapters=adapters)

    def _add_writing(self, record: Record, model: str, adapter: str) -> None:
        self._prompt_tokens.labels(model, adapter).inc(record.prompt_tokens)
        self._generated_tokens.labels(model, adapter).inc(record.generated_tokens)
        _observe(self._queue.labels(model, adapter), (each.queued_s for each in record.timings))
        _observe(self._first.labels(model, adapter), first_tokens_s(record))
        _observe(self._between.labels(model, adapter), filter(None, map(_between_tokens_s, record.calls)))
        _observe(self._gaps.labels(model, adapter), record.gaps_s)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rayloom_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"rayloom_{name}_seconds", text, (*labels, *_MODEL), registry=self.registry, buckets=tuple(buckets)
        )


def first_tokens_s(record: Record) -> list[float]:
    """Seconds to the first token: as this process saw it, or what the engine tells of answers that came whole."""
    if record.first_s is not None:
        return [record.first_s]
    return [timing.queued_s + timing.prefill_s for timing in record.timings]


def _between_tokens_s(call: CallRecord) -> float | None:
    timing = call.timing
    return timing.decode_s / (timing.num_steps - 1) if timing and timing.num_steps > 1 else None


def _observe(histogram: Histogram, values: Iterable[float]) -> None:
    for value in values:
        histogram.observe(value)
