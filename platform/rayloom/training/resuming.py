"""Taking up a run: progress, weights, optimizer and random states, on whatever number of workers there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayloom.training import distributed
from rayloom.training.backends import Backend
from rayloom.training.checkpoint import Progress, load_progress, load_rng, seed_everything
from rayloom.training.job import Job


def start(job: Job, backend: Backend, resume_from: Path | None) -> Progress:
    """Seed, and put everything back that a checkpoint holds. Collective.

    On the number of workers that wrote it, a run goes on with the very random states that it had; on another one,
    dropout draws from new streams that follow from seed, step and rank.

    Args:
        job: The run; a checkpoint's own global batch size wins over its.
        backend: Takes the weights and the optimizer's state.
        resume_from: Folder of a checkpoint; None for a new run.

    Returns:
        Where the run is, with the present number of workers.

    Raises:
        TrainingError: The folder is no checkpoint, or cannot be converted.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    backend.module.train()
    if resume_from is None:
        seed_everything(job.config.training.seed + 1000 * rank)
        return Progress(world_size=world_size, global_batch_size=job.rows_per_step)
    progress = load_progress(resume_from)
    backend.load(resume_from)
    if progress.world_size == world_size:
        load_rng(resume_from, rank)
    else:
        seed_everything(_derived_seed(job.config.training.seed, progress.step, rank))
    return progress.moved(world_size=world_size, global_batch_size=progress.global_batch_size or job.rows_per_step)


def _derived_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
