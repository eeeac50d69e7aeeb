"""Seeing what the service does: metrics, the log of requests, traces. See docs/observability.md."""
