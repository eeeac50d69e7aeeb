"""The checkpoints of a run: which there are, which can be trusted, and which may go.

Layout below ``<run>/checkpoints``::

    step-00000040-<attempt>/
        …                 files of all ranks, see `rayloom.training.checkpoint`
        rank<r>.json      rank r has uploaded its files (their sizes and hashes)
        COMMIT.json       written last, by rank 0: the checkpoint exists
    INDEX.json            the checkpoints that are kept, so that the loss of one is noticed
    OWNER.json            the attempt that may commit: one that was thought dead cannot disturb its successor

A folder without ``COMMIT.json`` does not exist; it is what a killed attempt left, and the next owner removes it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rayloom.errors import TrainingError
from rayloom.training.commits import COMMIT, Commit, Identity, is_folder_name
from rayloom.training.scratch import scratch
from rayloom.training.storage import Storage

_INDEX, _OWNER = "INDEX.json", "OWNER.json"


class CheckpointStore:
    """Committed checkpoints at one place.

    Args:
        place: Folder or URI.
        identity: What decides the run's weights, as hashes by name; checkpoints of another run are never loaded.
        note: Takes a line for people, about damaged checkpoints.
    """

    def __init__(self, place: str, identity: Identity, *, note: Callable[[str], None]) -> None:
        self.storage, self.identity = Storage(place), identity
        self._note = note
        self._damaged: dict[str, str] = {}
        self._foreign: dict[str, str] = {}

    def latest(self) -> Commit | None:
        """The newest checkpoint whose files are all as they were written; None if none was ever committed.

        Raises:
            TrainingError: There were checkpoints, and none of them can be used.
        """
        for commit in reversed(self.records()):
            if self._is_whole(commit):
                return commit
        if self._index() is None and not self._damaged and not self._foreign:
            return None
        reasons = "; ".join(f"{name}: {why}" for name, why in (self._damaged | self._foreign).items())
        raise TrainingError(
            f"no checkpoint in {self.storage.place} can be resumed ({reasons or f'{_INDEX} is damaged'}): "
            "put a copy of one back, or start another run"
        )

    def best(self) -> Commit | None:
        """The whole checkpoint with the highest score, or the latest if none has a score.

        Raises:
            TrainingError: As `latest`.
        """
        for commit in sorted((c for c in self.records() if c.ranking), key=lambda c: c.ranking or (), reverse=True):
            if self._is_whole(commit):
                return commit
        return self.latest()

    def named(self, folder: str) -> Commit:
        """The checkpoint in a folder, its files being as they were written.

        Raises:
            TrainingError: It was never finished, is damaged, or is another run's.
        """
        commit = next((each for each in self.records() if each.folder == folder), None)
        if commit is not None and self._is_whole(commit):
            return commit
        reason = (self._damaged | self._foreign).get(folder, f"it has no {COMMIT}, so it was never finished")
        raise TrainingError(f"checkpoint {self.storage.place}/{folder} cannot be used: {reason}")

    def records(self) -> list[Commit]:
        """All that were committed by this run and are not known to be damaged, oldest step first."""
        for folder in self._index() or []:
            if self.storage.read(f"{folder}/{COMMIT}") is None:
                self._reject(folder, f"it was saved, but its {COMMIT} is gone")
        found = [self._read(folder) for folder in self._folders() if folder not in self._damaged]
        return sorted((commit for commit in found if commit), key=lambda commit: (commit.step, commit.committed))

    @contextlib.contextmanager
    def opened(self, commit: Commit) -> Iterator[Path]:
        """A local folder with the checkpoint's files. Not to be written to.

        Raises:
            TrainingError: This node does not see it, or a file differs from what was committed.
        """
        local = self.storage.local(commit.folder)
        if local is not None:
            if not local.is_dir():
                raise TrainingError(
                    f"{local} is not on this node: output.storage_path must be a place that all nodes share"
                )
            yield local
            return
        with scratch("resume") as folder:
            for file, entry in commit.files.items():
                if self.storage.download(f"{commit.folder}/{file}", folder / file) != entry:
                    raise TrainingError(f"{self.storage.place}/{commit.folder}/{file} was damaged on its way here")
            yield folder

    def take_over(self, attempt: str) -> Commit | None:
        """Become the owner, choose the checkpoint to go on from, and remove what killed attempts left.

        Args:
            attempt: Unique name of this attempt, of digits and small letters.

        Returns:
            See `latest`.
        """
        self.storage.write(_OWNER, json.dumps({"attempt": attempt}).encode())
        chosen = self.latest()
        for folder in self._folders():
            if folder not in self._damaged and self.storage.read(f"{folder}/{COMMIT}") is None:
                self.storage.remove_folder(folder)
        return chosen

    def commit(self, commit: Commit) -> None:
        """Write the mark that makes a checkpoint exist, its files being there.

        Raises:
            TrainingError: Another attempt has become the owner.
        """
        owner = self.storage.read(_OWNER)
        if owner is not None and json.loads(owner)["attempt"] != commit.attempt:
            raise TrainingError(f"another process has gone on with the run in {self.storage.place}: this one stops")
        self.storage.write(f"{commit.folder}/{COMMIT}", commit.dump())

    def prune(self, newest: Commit, *, keep: int) -> None:
        """Remove the oldest checkpoints beyond ``keep``, never the best or the newest; and damaged ones.

        Args:
            newest: The one just committed; what is damaged is only removed because this one is safe.
            keep: Checkpoints to keep.
        """
        records = self.records()
        scored = [commit for commit in records if commit.ranking]
        kept = {newest.folder} | ({max(scored, key=lambda c: c.ranking or ()).folder} if scored else set())
        for commit in reversed(records):
            if len(kept) < keep:
                kept.add(commit.folder)
        self.storage.write(_INDEX, json.dumps({"folders": sorted(kept)}).encode())
        for folder in [c.folder for c in records if c.folder not in kept] + [*self._damaged]:
            # The mark goes first: what is half removed must not look like damage.
            self.storage.remove_file(f"{folder}/{COMMIT}")
            self.storage.remove_folder(folder)
        self._damaged.clear()

    def _folders(self) -> list[str]:
        return [name for name in self.storage.folders() if is_folder_name(name)]

    def _read(self, folder: str) -> Commit | None:
        content = self.storage.read(f"{folder}/{COMMIT}")
        if content is None:
            return None
        try:
            commit = Commit.parse(content)
        except ValueError as error:
            self._reject(folder, f"its {COMMIT} {_one_line(error)}")
            return None
        if commit.folder != folder:
            self._reject(folder, f"its {COMMIT} is that of {commit.folder}")
            return None
        return commit if self._is_ours(commit) else None

    def _is_ours(self, commit: Commit) -> bool:
        names = commit.identity.keys() | self.identity.keys()
        differing = sorted(name for name in names if commit.identity.get(name) != self.identity.get(name))
        if differing and commit.folder not in self._foreign:
            self._foreign[commit.folder] = f"it was made by a run with other {' and '.join(differing)}"
            self._note(f"checkpoint {commit.folder} is left alone: {self._foreign[commit.folder]}")
        return not differing

    def _is_whole(self, commit: Commit) -> bool:
        problem = self._problem(commit)
        if problem:
            self._reject(commit.folder, problem)
        return not problem

    def _problem(self, commit: Commit) -> str | None:
        expected = commit.files
        for name in self.storage.files(commit.folder):
            # A stranger among the shards could be loaded with them.
            if name not in expected and name != COMMIT and not _is_scaffolding(name):
                return f"{name} does not belong to it"
        for name, entry in expected.items():
            found = self.storage.entry(f"{commit.folder}/{name}")
            if found is None:
                return f"{name} is missing"
            if found.size != entry.size:
                return f"{name} has {found.size} bytes instead of {entry.size}"
            if found != entry:
                return f"{name} does not match its checksum"
        return None

    def _reject(self, folder: str, reason: str) -> None:
        if folder not in self._damaged:
            self._damaged[folder] = reason
            self._note(f"checkpoint {folder} is damaged and is not used: {reason}")

    def _index(self) -> list[str] | None:
        """Folders that are kept; empty where the list is unreadable, None where nothing was ever saved."""
        content = self.storage.read(_INDEX)
        if content is None:
            return None
        try:
            names = [str(name) for name in json.loads(content)["folders"]]
        except (ValueError, KeyError, TypeError):
            return []
        return [name for name in names if is_folder_name(name)]


def _is_scaffolding(name: str) -> bool:
    file = name.rsplit("/", 1)[-1]
    return file.startswith(".") or (file == name and file.startswith("rank") and file.endswith(".json"))


def _one_line(error: ValueError) -> str:
    return " ".join(str(error).split())
