"""What the serving benchmark asks: Rayloom behind Serve, and its peers, each pinned to as many cores as threads."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from peers import batch_service
from ray import cloudpickle, serve
from workloads import Model

from rayloom.config import ServingConfig
from rayloom.serving import serving
from rayloom.serving.connections import CALLBACK
from rayloom.serving.protocols import ServedModel

_OBJECT_STORE_BYTES = 256 * 1024**2
_TUTORIAL = Path(__file__).resolve().parent / "peers" / "tutorial_service.py"


@contextmanager
def rayloom_service(model: Model, threads: int, **options: Any) -> Iterator[str]:
    """The URL of Rayloom on a Ray of its own.

    Args:
        model: What is served.
        threads: Of its one replica.
        options: Of `ServingConfig`.
    """
    config = ServingConfig(artifact=str(model.folder), num_cpus=threads, replay_golden=False, **options)
    with _ray(), serving(config, open_model=_pinned) as url:
        yield url


def batched_service(url: str, model: Model, threads: int) -> str:
    """URL of ``@serve.batch`` over ``generate``, deployed beside what is at the URL."""
    cloudpickle.register_pickle_by_value(batch_service)
    deployment: Any = batch_service.Batched
    app = deployment.options(ray_actor_options={"num_cpus": threads}).bind(str(model.folder), threads)
    serve.run(app, name="batched", route_prefix="/batched")
    return f"{url}/batched"


@contextmanager
def tutorial_service(model: Model, threads: int) -> Iterator[str]:
    """URL of FastAPI around ``generate``."""
    command = [sys.executable, str(_TUTORIAL), str(model.folder), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("the tutorial's service did not start")
        yield f"{url}/generate"
    finally:
        process.kill()
        process.communicate()


def service_memory() -> dict[str, float]:
    """MiB of each of Serve's processes: proxy, ingress, replica."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and any(part in title for part in ("Replica", "Proxy")):
                found[f"{title.split()[0].removeprefix('ray::')} {process.pid}"] = process.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return found


def _pinned(config: ServingConfig) -> ServedModel:
    """As the application opens a model, on cores of its own: the last ones, as the peers have."""
    import torch

    from rayloom.serving.app import open_text_generator

    threads = int(config.num_cpus)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    return open_text_generator(config)


@contextmanager
def _ray() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    temp_dir = tempfile.mkdtemp(prefix="rl-bench-")  # short: sockets live in it
    os.environ.setdefault(*CALLBACK)  # as `rayloom serve` has it
    ray.init(
        "local",
        num_cpus=8,  # logical: both sides of a table stay, though only one is asked at a time
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=temp_dir,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)
