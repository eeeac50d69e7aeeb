"""Saves a rank's part of checkpoints to the store while training goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rayloom.artifacts.storage import files_below
from rayloom.errors import RayloomError, TrainingError
from rayloom.training.checkpoint import Part, Progress
from rayloom.training.commits import Commit, Files, RankPart, folder_name
from rayloom.training.scratch import make_scratch, sweep_scratch
from rayloom.training.store import CheckpointStore

_PEERS_S = 1800.0
_LAST_CHANCE_S = 10.0


@dataclass(frozen=True)
class Member:
    """One process of an attempt.

    Attributes:
        attempt: Unique name of the attempt, the same on all ranks.
        rank: Of this process.
        world_size: Processes of the attempt.
    """

    attempt: str
    rank: int
    world_size: int


class CheckpointSaver:
    """Uploads in a thread, one checkpoint at a time; rank 0 commits when all ranks' parts are there.

    No collective runs in the thread: rank 0 finds the others' parts in the store. Leaving the block waits for the
    upload in flight; leaving it by an exception waits only a little, since the other ranks may be gone.

    Args:
        store: Where to.
        member: Which process of the attempt this is.
        keep: Checkpoints to keep.
        saved: Called on rank 0, in the thread, with each checkpoint that has become safe.
        peers_timeout_s: How long rank 0 waits for the other ranks' parts.
    """

    def __init__(
        self,
        store: CheckpointStore,
        member: Member,
        *,
        keep: int,
        saved: Callable[[Commit], None],
        peers_timeout_s: float = _PEERS_S,
    ) -> None:
        self._store, self._member, self._keep, self._saved = store, member, keep, saved
        self._peers_timeout_s = peers_timeout_s
        self._thread: threading.Thread | None = None
        self._error: RayloomError | None = None
        self._gives_up = threading.Event()

    def __enter__(self) -> CheckpointSaver:
        sweep_scratch()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.flush()
        elif self._thread is not None:
            self._thread.join(_LAST_CHANCE_S)
            self._gives_up.set()

    def save(self, part: Part, progress: Progress, metrics: dict[str, float], score: float | None) -> None:
        """Finish a part of a checkpoint and upload it beside training, once the last upload is done.

        Args:
            part: Of this rank; its folder is empty afterwards.
            progress: Where the run is.
            metrics: Validation figures of exactly these weights.
            score: What checkpoints are compared by, larger is better; None without one.

        Raises:
            TrainingError: The last upload failed.
        """
        self.flush()
        staging = make_scratch("upload", part.folder.parent)
        for child in part.folder.iterdir():
            child.rename(staging / child.name)

        def work() -> None:
            try:
                part.finish(staging)
                self._upload(staging, progress, metrics, score)
            except RayloomError as error:
                self._error = error
            except Exception as error:
                self._error = TrainingError(f"the checkpoint of step {progress.step} could not be saved: {error!r}")
            finally:
                shutil.rmtree(staging, ignore_errors=True)

        self._thread = threading.Thread(target=work, name="checkpoint-upload", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait for the upload in flight.

        Raises:
            TrainingError: It failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread so far, without waiting.

        Raises:
            TrainingError: An upload failed.
        """
        if self._error is not None:
            raise self._error

    def _upload(self, staging: Path, progress: Progress, metrics: dict[str, float], score: float | None) -> None:
        storage, member = self._store.storage, self._member
        folder = folder_name(progress.step, member.attempt)
        files = {name: storage.take(staging / name, f"{folder}/{name}") for name in files_below(staging)}
        uploaded = RankPart(
            attempt=member.attempt,
            step=progress.step,
            world_size=member.world_size,
            rank=member.rank,
            files=files,
        )
        storage.write(f"{folder}/{RankPart.name(member.rank)}", uploaded.dump())
        if member.rank != 0:
            return
        commit = Commit(
            attempt=member.attempt,
            step=progress.step,
            world_size=member.world_size,
            identity=self._store.identity,
            progress=asdict(progress),
            metrics=metrics,
            score=score,
            ranks=[files, *self._others(folder)],
            committed=datetime.now(UTC).isoformat(),
        )
        self._store.commit(commit)
        self._saved(commit)
        self._store.prune(commit, keep=self._keep)

    def _others(self, folder: str) -> list[Files]:
        """Files of ranks 1 and up, as soon as these say that they are there."""
        parts: dict[int, Files] = {}
        waited_s, pause_s = 0.0, 0.02
        while len(parts) < self._member.world_size - 1:
            for rank in (r for r in range(1, self._member.world_size) if r not in parts):
                content = self._store.storage.read(f"{folder}/{RankPart.name(rank)}")
                if content is not None:
                    parts[rank] = self._checked(RankPart.parse(content), rank).files
            if len(parts) == self._member.world_size - 1:
                break
            if waited_s > self._peers_timeout_s or self._gives_up.wait(pause_s):
                missing = sorted(set(range(1, self._member.world_size)) - set(parts))
                raise TrainingError(
                    f"checkpoint {folder}: the parts of workers {missing} did not come to {self._store.storage.place} "
                    f"in {waited_s:.0f} s: output.storage_path must be a place that all nodes share"
                )
            waited_s, pause_s = waited_s + pause_s, min(1.0, pause_s * 1.5)
        return [parts[rank] for rank in sorted(parts)]

    def _checked(self, part: RankPart, rank: int) -> RankPart:
        if (part.rank, part.world_size, part.attempt) != (rank, self._member.world_size, self._member.attempt):
            raise TrainingError(f"{RankPart.name(rank)} of checkpoint {part.folder} is that of another worker")
        return part
