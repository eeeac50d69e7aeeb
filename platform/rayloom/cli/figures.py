"""Amounts as people read them."""

from __future__ import annotations


def gib(num_bytes: int) -> str:
    """Bytes as GiB."""
    value = num_bytes / (1 << 30)
    return f"{value:.3f}" if 0 < value < 0.1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
