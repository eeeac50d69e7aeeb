"""A training run on Ray: prepare, train in workers, publish the best checkpoint as an artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, Result, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from rayloom.config import RunConfig
from rayloom.data import Row
from rayloom.errors import ConfigError, DivergedError, RayloomError, TrainingError
from rayloom.launch.corpus import corpus_workers
from rayloom.launch.entry import train_worker
from rayloom.launch.heap import heap_environment
from rayloom.launch.preparation import Prepared, prepare
from rayloom.launch.progress import Awaited, Note, Sink, both, watched
from rayloom.launch.runs import Run, check_place
from rayloom.launch.session import Cluster, ray_session
from rayloom.launch.shipping import pack
from rayloom.launch.starting import settled
from rayloom.launch.tracking.session import require_packages, tracked
from rayloom.launch.worker import DIVERGED, Payload
from rayloom.training import CheckpointStore, Commit, Identity

Announce = Callable[[Prepared, Cluster, Run], None]
Begin = Callable[[CheckpointStore, Sink], object]


@dataclass(frozen=True)
class TrainOutcome:
    """What a run has made.

    Attributes:
        run: Its folder.
        artifact: Place of the published artifact.
        metrics: Validation figures of the best checkpoint, and of training (``train_s``, ``tokens_per_s``, …).
        steps: Optimizer steps done.
    """

    run: Run
    artifact: str
    metrics: dict[str, float]
    steps: int


def run_training(
    config: RunConfig,
    *,
    sink: Sink,
    announce: Announce,
    resume: bool = False,
    begin: Begin | None = None,
    verbose: bool = False,
) -> TrainOutcome:
    """Train, and publish the best checkpoint.

    Args:
        config: The run.
        sink: Takes progress as it comes. Training waits for one that is `Awaited`.
        announce: Called once all is ready to start.
        resume: Go on with the run that ``output.run_name`` names.
        begin: Puts a first checkpoint into a new run's store, which training then goes on from.
        verbose: Show the workers' own output.

    Raises:
        UserError: Of the config, the data or the model.
        TrainingError: Training failed for good.
        ServiceError: No Ray.
    """
    config = settled(config, note=lambda text: sink(Note(text)))
    run = open_run(config, resume=resume)
    with corpus_workers(config, sink, verbose=verbose) as workers:
        prepared = prepare(config, workers=workers)
        identity = run.identity(config, prepared.train.digest)
        store = CheckpointStore(run.checkpoints_path, identity, note=lambda text: sink(Note(text)))
        if resume:
            check_checkpoints(store, sink)
        elif begin is not None:
            begin(store, sink)
        with ray_session(config.distributed, verbose=verbose) as cluster:
            check_resources(config, cluster)
            run.start(config)
            announce(prepared, cluster, run)
            files = ray.put(pack(prepared.source))
            with tracked(config, place=run.path, run_name=run.name, sink=sink) as tracking:
                with watched(both(sink, tracking)) as board:
                    payload = _payload(prepared, run, files, board, identity, waits=isinstance(sink, Awaited))
                    end = _returned(_fit(payload, run, cluster))
                best = store.best()
                if best is None:
                    raise TrainingError(f"training ended without a checkpoint in {run.checkpoints_path}")
                metrics = _metrics(best, end)
                artifact = _export(prepared, run, cluster, files, best, metrics)
                tracking.published(artifact, metrics)
    return TrainOutcome(run, artifact, metrics, int(end["step"]))


def check_checkpoints(store: CheckpointStore, sink: Sink) -> None:
    """Say before any worker starts if a run cannot be resumed, or has to begin anew.

    Raises:
        TrainingError: It has saved checkpoints, and none of them can be used.
    """
    # The workers read and check the files themselves; here only the list of checkpoints matters.
    if not store.records() and store.latest() is None:
        sink(Note("this run was interrupted before its first checkpoint: it begins anew"))


def open_run(config: RunConfig, *, resume: bool) -> Run:
    """The run's folder, checked against what is there.

    Raises:
        ConfigError: It exists and is not to be resumed, or the other way round; or a tracker's package is missing.
    """
    run = Run.of(config)
    require_packages(config.tracking)
    if config.output.artifact_path is not None:
        check_place(config.output.artifact_path, key="output.artifact_path")
    if resume:
        if config.output.run_name is None:
            raise ConfigError("to resume, name the run", key="output.run_name")
        run.require_same(config)
    elif run.exists():
        raise ConfigError(
            f"run '{run.name}' exists in {run.storage_path}: add --resume to go on with it, or choose another name",
            key="output.run_name",
        )
    return run


def uses_gpu(config: RunConfig, cluster: Cluster) -> bool:
    """Whether workers get a GPU each."""
    wanted = config.distributed.use_gpu
    return cluster.num_gpus >= 1 if wanted == "auto" else wanted


def check_resources(config: RunConfig, cluster: Cluster) -> None:
    """Refuse a run that this cluster could never place. An autoscaling cluster may grow, so it is believed.

    Raises:
        ConfigError: More workers than a local Ray has room for, or a precision that the device lacks.
    """
    workers = config.distributed
    least = workers.min_workers or workers.num_workers
    if cluster.address is None and uses_gpu(config, cluster) and cluster.num_gpus < least:
        # Ray would wait for the missing ones for ever.
        raise ConfigError(
            f"{least} workers take a GPU each, but this machine has {cluster.num_gpus:g}: "
            "lower num_workers, or set use_gpu: false to train on CPUs",
            key="distributed.num_workers",
        )
    if config.training.fp16 and not uses_gpu(config, cluster):
        raise ConfigError("fp16 needs GPUs; on CPUs use bf16 or fp32", key="training.fp16")


def _payload(prepared: Prepared, run: Run, files: Any, board: Any, identity: Identity, *, waits: bool) -> Payload:
    return Payload(
        config=prepared.config,
        source=prepared.source,
        template=prepared.template,
        columns=prepared.columns,
        model_files=files,
        train=ray.put(prepared.train),
        validation=ray.put(prepared.validation),
        eval_rows=_eval_rows(prepared),
        board=board,
        place=run.path,
        identity=identity,
        waits=waits,
    )


def _eval_rows(prepared: Prepared) -> list[Row]:
    """Validation rows to generate for; texts that are only continued can be long, and are not looked at."""
    if prepared.config.model.task_type == "language-modeling":
        return []
    return list(prepared.splits.validation[: prepared.config.training.eval_rows])


def _fit(payload: Payload, run: Run, cluster: Cluster) -> Result:
    workers, on_gpu = payload.config.distributed, uses_gpu(payload.config, cluster)
    count = workers.num_workers
    storage_path, filesystem = run.ray_storage()
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's types forget that its result has a return_value
        train_loop_config={"payload": ray.put(payload)},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            # Ray's types know no pair, which means elastic workers.
            num_workers=count if workers.min_workers is None else (workers.min_workers, count),  # type: ignore[arg-type]
            use_gpu=on_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker} | ({"GPU": 1} if on_gpu else {}),
        ),
        # Ray keeps its own state here; checkpoints go to our store, since a report that Ray had taken could be lost.
        run_config=RayRunConfig(
            name=run.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            worker_runtime_env={"env_vars": {} if on_gpu else heap_environment()},  # type: ignore[call-arg]  # types of v1
        ),
    )
    try:
        return trainer.fit()
    except TrainingFailedError as error:
        raise _root_cause(error) from error


def _root_cause(error: TrainingFailedError) -> RayloomError:
    """Our own error from inside a worker as it was raised there; anything else as a `TrainingError`."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, RayloomError):
            return cause
    text = "\n".join(str(failure) for failure in failures.values()) or str(error)
    return TrainingError(f"training failed in the workers:\n{text}")


def _returned(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = getattr(result, "return_value", None) or {}
    if DIVERGED in value:
        raise DivergedError(value[DIVERGED])
    return value


def _metrics(best: Commit, end: dict[str, Any]) -> dict[str, float]:
    seconds, tokens = float(end["train_s"]), float(end["tokens"])
    place = {name: float(best.progress[name]) for name in ("step", "epoch")}
    speed = tokens / seconds if seconds else 0.0
    peaks = {name: float(end[name]) for name in ("peak_host_bytes", "peak_gpu_bytes") if name in end}
    return best.metrics | place | {"train_s": seconds, "train_tokens": tokens, "train_tokens_per_s": speed} | peaks


def _export(prepared: Prepared, run: Run, cluster: Cluster, files: Any, best: Commit, metrics: dict[str, float]) -> str:
    from rayloom.launch.export import ExportSpec, export_best  # the engine takes seconds to import: not before training

    spec = ExportSpec(
        config=prepared.config,
        source=prepared.source,
        template=prepared.template,
        columns=prepared.columns,
        name=run.name,
        golden_rows=list((prepared.splits.validation or prepared.splits.train)[:4]),
        data_hash=prepared.splits.digest,
        metrics=metrics,
    )
    destination = prepared.config.output.artifact_path or run.artifact_path
    if cluster.address is None:
        # This process has everything loaded already.
        return export_best(spec, run.checkpoints_path, best, destination, None)
    # The driver may be a small head node: let a worker node do it.
    on_gpu = uses_gpu(prepared.config, cluster)
    task = ray.remote(export_best).options(num_cpus=prepared.config.distributed.cpus_per_worker, num_gpus=int(on_gpu))
    try:
        place: str = ray.get(task.remote(spec, run.checkpoints_path, best, destination, files))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, RayloomError) else TrainingError(f"export failed: {error}") from error
    return place
