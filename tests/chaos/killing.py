"""SIGKILL for replicas, at random moments."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator

import psutil

from tests.chaos.report import Tally


@contextlib.contextmanager
def killing(model: str, every_s: float, tally: Tally) -> Iterator[None]:
    """Kill one replica of a model every so many seconds, give or take half of them, while the context lasts."""
    is_over, rng = threading.Event(), random.Random(model)

    def kill() -> None:
        while not is_over.wait(rng.uniform(0.5, 1.5) * every_s):
            if alive := replicas(model):
                with contextlib.suppress(psutil.NoSuchProcess):
                    rng.choice(alive).send_signal(signal.SIGKILL)
                    tally.num_killed += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def replicas(model: str) -> list[psutil.Process]:
    """Processes of a model's replicas, opening ones included: Ray names them after their actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = "".join(process.cmdline()[:1])
            if title.startswith("ray::") and f"ServeReplica:rayloom:Model-{model}" in title:
                found.append(process)
    return found
