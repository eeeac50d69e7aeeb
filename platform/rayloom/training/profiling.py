"""A trace of a few early steps, for `chrome://tracing` or Perfetto."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rayloom.training.records import Reporter
from rayloom.training.scratch import scratch

FIRST, LAST = 5, 10
"""Steps of this process that are traced: the first ones are busy with warming up."""
TRACE_NAME = "trace.json.gz"


class StepProfiler:
    """Traces steps 5 to 10 of this process; a run that ends earlier keeps what it has.

    Args:
        wanted: False does nothing at all.
        device: Its kernels are traced, beside the CPU.
        reporter: Takes the trace.
    """

    def __init__(self, reporter: Reporter, device: torch.device, *, wanted: bool) -> None:
        self._reporter = reporter
        self._profiler: Any = None
        if wanted:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
            # The step before the first one is thrown away: it pays for starting the profiler.
            steps = schedule(skip_first=FIRST - 2, wait=0, warmup=1, active=LAST - FIRST + 1, repeat=1)
            self._profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._keep)

    def __enter__(self) -> Self:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()

    def step(self) -> None:
        """An optimizer step is done."""
        if self._profiler is not None:
            self._profiler.step()

    def _keep(self, profiler: Any) -> None:
        with scratch("trace") as folder:
            path = folder / TRACE_NAME
            profiler.export_chrome_trace(str(path))
            self._reporter.keep_file(path)
