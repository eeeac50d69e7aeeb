"""A Ray to run on: the cluster that the environment names, or a local one that is stopped afterwards."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from rayloom.config import DistributedConfig
from rayloom.errors import ServiceError

_OBJECT_STORE_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Cluster:
    """What a session runs on.

    Attributes:
        address: Of the cluster that was joined; None for a local Ray.
        num_cpus: Logical CPUs of the whole cluster.
        num_gpus: GPUs of the whole cluster.
    """

    address: str | None
    num_cpus: float
    num_gpus: float

    def describe(self) -> str:
        """One line for people."""
        place = f"cluster {self.address}" if self.address else "local Ray"
        return f"{place} with {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


@contextlib.contextmanager
def ray_session(workers: DistributedConfig, *, verbose: bool = False) -> Iterator[Cluster]:
    """Join the Ray that ``RAY_ADDRESS`` names (as it does inside a Ray job), or start a local one.

    A Ray that this process has joined already is used as it is, and left running.

    Args:
        workers: A local Ray gets at least as many logical CPUs as these need.
        verbose: Show the workers' own output.

    Raises:
        ServiceError: The named cluster does not answer.
    """
    if ray.is_initialized():
        yield _describe(os.environ.get("RAY_ADDRESS"))
        return
    address = os.environ.get("RAY_ADDRESS")
    temp_dir = None
    try:
        if address:
            _join(address, verbose)
        else:
            # Sockets live in this folder, and their paths may not be long.
            temp_dir = tempfile.mkdtemp(prefix="rayloom-")
            _start_local(workers, temp_dir, verbose)
        yield _describe(address)
    finally:
        ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _join(address: str, verbose: bool) -> None:
    try:
        ray.init(address, log_to_driver=verbose, logging_level=logging.WARNING)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise ServiceError(f"the Ray cluster at RAY_ADDRESS={address} does not answer: {error}") from error


def _start_local(workers: DistributedConfig, temp_dir: str, verbose: bool) -> None:
    # Token authentication is on, as it should be; Ray would warn about that.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    needed = math.ceil(workers.num_workers * workers.cpus_per_worker)
    ray.init(
        "local",
        num_cpus=max(needed, os.cpu_count() or 1),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=logging.WARNING,
        _temp_dir=temp_dir,
    )


def _describe(address: str | None) -> Cluster:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Cluster(address, resources.get("CPU", 0.0), resources.get("GPU", 0.0))
