"""Metrics of A/B splits: what became of the calls to each arm, copies for shadows included."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from rayloom.serving.arms import ArmCall

_LABELS = ("split", "arm", "shadow")


class ArmMetrics:
    """An `ArmObserver`. Its labels are names of the config, and no others.

    Args:
        registry: Where the metrics are registered.
        buckets: Of the histogram, in seconds.
    """

    def __init__(self, registry: CollectorRegistry, buckets: tuple[float, ...]) -> None:
        text = "Calls to arms of a split, copies for a shadow (shadow=yes) counted apart"
        self._calls = Counter("rayloom_arm_calls", text, (*_LABELS, "status"), registry=registry)
        self._tokens = Counter("rayloom_arm_tokens", "Tokens that arms wrote", _LABELS, registry=registry)
        text = "Whole calls to arms of a split"
        self._seconds = Histogram("rayloom_arm_call_seconds", text, _LABELS, registry=registry, buckets=buckets)

    def ended(self, call: ArmCall) -> None:
        """See `ArmObserver`."""
        labels = (call.route, call.arm, "yes" if call.is_shadow else "no")
        self._calls.labels(*labels, str(call.status)).inc()
        self._tokens.labels(*labels).inc(call.num_tokens)
        self._seconds.labels(*labels).observe(call.seconds)
