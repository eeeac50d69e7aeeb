"""A checkpoint of one run becomes the first checkpoint of another: weights, optimizer, data position and all.

Resuming refuses a config that differs from the run's own, since that is nearly always a mistake. Here it is the point:
the new run has settings of its own and says so by its own identity, and goes on where the donor was.
"""

from __future__ import annotations

from rayloom.errors import ConfigError, TrainingError
from rayloom.launch.progress import Note, Sink
from rayloom.training import CheckpointStore, Commit
from rayloom.training.continuing import Start, find_start

_ATTEMPTS = 3


def hand_over(donor: str, store: CheckpointStore, sink: Sink) -> Commit:
    """Copy a checkpoint of another run into the store of a new one.

    The donor goes on meanwhile and may remove the checkpoint; then its newest one is taken.

    Args:
        donor: Folder or URI of the checkpoint, in its run's folder.
        store: Of the new run, with that run's identity; it has no checkpoints yet.
        sink: Told what was taken.

    Returns:
        The checkpoint as the new run has it.

    Raises:
        ConfigError: The two runs do not train on the same rows.
        TrainingError: The donor has no checkpoint that can be used.
    """
    run = donor.rsplit("/checkpoints/", 1)[0]
    for attempt in range(_ATTEMPTS):
        try:
            commit = _copied(_chosen(donor, run, is_first=attempt == 0), store)
        except TrainingError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            sink(Note(f"goes on from step {commit.step} of {run}, its weights and its optimizer"))
            return commit
    raise AssertionError("the last attempt returns or raises")


def _chosen(donor: str, run: str, *, is_first: bool) -> Start:
    def ignore(_: str) -> None:
        """Damaged checkpoints are the donor's own affair."""

    found = find_start(donor if is_first else run, note=ignore)
    if found is None:
        raise TrainingError(f"{donor} is no checkpoint of a run")
    if is_first:
        return found
    newest = CheckpointStore(f"{run}/checkpoints", found.commit.identity, note=ignore).latest()
    return Start(found.place, found.config, newest or found.commit)


def _copied(start: Start, store: CheckpointStore) -> Commit:
    if start.commit.identity.get("data") != store.identity.get("data"):
        raise ConfigError(f"{start.name} was trained on other rows, so its place among them means nothing here")
    source = CheckpointStore(f"{start.place}/checkpoints", start.commit.identity, note=lambda _: None)
    with source.opened(start.commit) as folder:
        for name, entry in start.commit.files.items():
            if store.storage.upload(folder / name, f"{start.commit.folder}/{name}") != entry:
                raise TrainingError(f"{start.name}/{name} changed while it was copied")
    commit = start.commit.model_copy(update={"identity": dict(store.identity)})
    store.commit(commit)
    return commit
