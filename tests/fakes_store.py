"""Small checkpoints of several ranks, written by real savers, for the tests of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from rayloom.training import Part, Progress
from rayloom.training.commits import Commit
from rayloom.training.saver import CheckpointSaver, Member
from rayloom.training.store import CheckpointStore

IDENTITY = {"config": "c1", "data": "d1"}


def store_at(place: str | Path, identity: dict[str, str] = IDENTITY) -> tuple[CheckpointStore, list[str]]:
    """A store, and the notes that it makes."""
    notes: list[str] = []
    return CheckpointStore(str(place), identity, note=notes.append), notes


def content(step: int, rank: int) -> dict[str, bytes]:
    """Files of one rank: those of all kinds that a checkpoint has."""
    own = {
        f"rng_rank{rank}.pt": b"rng %d %d" % (step, rank),
        f"deepspeed/step/zero_pp_rank_{rank}_optim_states.pt": b"optimizer %d %d " % (step, rank) * 50,
    }
    shared = {
        "state.json": b'{"step": %d}' % step,
        "weights.safetensors": b"weights %d " % step * 100,
        "deepspeed/latest": b"step",
    }
    return own | (shared if rank == 0 else {})


def save_rank(
    store: CheckpointStore,
    work: Path,
    step: int,
    member: Member,
    *,
    score: float | None = None,
    keep: int = 100,
    saved: Callable[[Commit], None] = lambda commit: None,
) -> None:
    """One rank's part of a checkpoint, to the end of its upload."""
    folder = work / f"{step}-{member.attempt}-{member.rank}"
    for name, data in content(step, member.rank).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    metrics = {} if score is None else {"loss": -score}
    with CheckpointSaver(store, member, keep=keep, saved=saved, peers_timeout_s=20.0) as saver:
        saver.save(Part(folder), Progress(step=step, world_size=member.world_size), metrics, score)


def save(
    store: CheckpointStore,
    work: Path,
    step: int,
    *,
    attempt: str = "a1",
    world_size: int = 2,
    score: float | None = None,
    keep: int = 100,
) -> None:
    """A whole checkpoint; rank 0 goes last, so that it need not wait."""
    for rank in reversed(range(world_size)):
        save_rank(store, work, step, Member(attempt, rank, world_size), score=score, keep=keep)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    """A started thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
