"""Training, sweeps and evaluation as Ray jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

from ray.job_submission import JobStatus, JobSubmissionClient

from rayloom.config import EvaluateJob, RunConfig, SweepConfig, load_job
from rayloom.errors import ConfigError, ServiceError

Job = RunConfig | EvaluateJob | SweepConfig
_AGENT_WAIT_S = 180.0
_NO_AGENT = (
    f"the cluster's job agent did not come up in {_AGENT_WAIT_S:.0f} s. Another Ray on that machine may hold its port "
    "(52365): stop it, or start the head with 'ray start --head --dashboard-agent-listen-port=PORT'"
)
_RESULTS = ("runs", "sweeps", "reports")
"""Folders of results at the top of the working folder: large, and not wanted elsewhere."""
_EXCLUDED = [
    # A folder of the same name further down, such as data/reports, is somebody's data.
    *(f"/{name}" for name in _RESULTS),
    ".git",
    ".venv",
    "**/__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
]
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def submit_job(
    path: Path,
    *,
    address: str,
    overrides: Sequence[str] = (),
    wait: bool = True,
    show: Callable[[str], None],
) -> str:
    """Run a file from ``jobs/`` on a cluster, from this working folder.

    Args:
        path: Job file, inside the working folder (which is uploaded).
        address: Of the cluster's job server, such as ``http://127.0.0.1:8265``.
        overrides: As ``--set``.
        wait: Follow the log until the job ends.
        show: Takes log text as it comes.

    Returns:
        The job's id.

    Raises:
        ConfigError: The job file is wrong, or outside the working folder.
        ServiceError: The job server does not answer, or the job failed.
    """
    if not urlparse(address).hostname:
        raise ConfigError(f"--address {address!r}: expected such as http://127.0.0.1:8265")
    logging.getLogger("ray").setLevel(logging.WARNING)  # it would list every file that it does not upload
    job = load_job(path, overrides)
    entrypoint = shlex.join(_command(job, path, address, overrides))
    client = _connect(address)
    job_id = _submit(client, entrypoint)
    show(f"submitted {job_id}: {entrypoint}\n")
    if wait:
        asyncio.run(_follow(client, job_id, show))
        status = client.get_job_status(job_id)
        if status != JobStatus.SUCCEEDED:
            raise ServiceError(f"job {job_id} ended as {status}: {client.get_job_info(job_id).message}")
    return job_id


def _command(job: Job, path: Path, address: str, overrides: Sequence[str]) -> list[str]:
    try:
        inside = path.resolve().relative_to(Path.cwd())
    except ValueError:
        raise ConfigError("the job file must lie inside the working folder, which is uploaded", path=path) from None
    verb = "evaluate" if isinstance(job, EvaluateJob) else "sweep" if isinstance(job, SweepConfig) else "train"
    sets = [part for override in overrides for part in ("--set", override)]
    return ["python", "-m", "rayloom", verb, str(inside), *sets, *_outside_the_upload(job, path, address)]


def _outside_the_upload(job: Job, path: Path, address: str) -> list[str]:
    """The job's own places, where they would be looked for in the uploaded copy of the working folder.

    The cluster throws that copy away with what the job has written to it, and what earlier jobs have made is not in it.
    """
    results = {key: place for key, place in _results(job).items() if _is_relative(place)}
    sources = {key: place for key, place in _sources(job).items() if _is_relative(place) and Path(place).exists()}
    if urlparse(address).hostname not in _THIS_MACHINE:
        _refuse(results, "would be a folder in the job's upload, which the cluster throws away", path)
        left_out = {key: place for key, place in sources.items() if Path(place).parts[0] in _RESULTS}
        _refuse(left_out, "is not uploaded with the working folder", path)
        return []
    # In quotes, since it is read as YAML.
    found = [f"{key}={json.dumps(str(Path(place).resolve()))}" for key, place in (results | sources).items()]
    return [part for setting in found for part in ("--set", setting)]


def _refuse(places: Mapping[str, str], reason: str, path: Path) -> None:
    for key, place in places.items():
        raise ConfigError(
            f"'{place}' {reason}: name storage that all nodes share (an absolute path or a URI)", path=path, key=key
        )


def _results(job: Job) -> Mapping[str, str]:
    """Where a job writes to, by key."""
    if isinstance(job, EvaluateJob):
        return {"output": job.output}
    places = {"output.storage_path": job.output.storage_path}
    if isinstance(job, RunConfig) and job.output.artifact_path is not None:
        places["output.artifact_path"] = job.output.artifact_path
    return places


def _sources(job: Job) -> Mapping[str, str]:
    """What a job begins with that may be a folder, by key."""
    if isinstance(job, EvaluateJob):
        return {"artifact": job.artifact}
    if isinstance(job, SweepConfig):
        return {}
    places = {
        "model.name": None if job.model.random_init else job.model.name,  # else it is just a label
        "model.tokenizer": job.model.tokenizer,
        "lora.adapter": None if job.lora is None else job.lora.adapter,
    }
    return {key: place for key, place in places.items() if place is not None}


def _is_relative(place: str) -> bool:
    return "://" not in place and not Path(place).is_absolute() and not place.startswith("~")


def _submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Submit; a cluster that has just started is given time to get its job agent up."""
    give_up = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint, runtime_env={"working_dir": str(Path.cwd()), "excludes": _EXCLUDED}
                )
            )
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise ServiceError(f"the cluster does not take the job: {error}") from error
            if time.monotonic() > give_up:
                raise ServiceError(_NO_AGENT) from error
            time.sleep(2.0)


def _connect(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ServiceError(
            f"no Ray job server answers at {address} ({error}); start one with 'ray start --head', or pass --address"
        ) from error


async def _follow(client: JobSubmissionClient, job_id: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        show(text)
