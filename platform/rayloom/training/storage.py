"""A folder of checkpoints on a disk or behind an fsspec URI: whole small files, hashed large ones, fresh listings."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rayloom.artifacts.manifest import FileEntry
from rayloom.artifacts.storage import sync, write_durably
from rayloom.errors import RayloomError, TrainingError

_BLOCK = 4 << 20


class Storage:
    """Files below one place. Names are relative to it, with ``/`` between their parts.

    A file that is not there is None or False; every other failure is a `TrainingError`, so that a store that does not
    answer is never taken for an empty or a damaged one.

    Args:
        place: Folder or URI; need not exist yet.
    """

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        with self._answering("open"):
            self._fs, root = fsspec.core.url_to_fs(self.place)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def upload(self, source: Path, name: str) -> FileEntry:
        """Copy a local file here, durably; returns its size and SHA-256 as they were read."""
        with self._answering("write", name):
            self._make_parent(name)
            with source.open("rb") as reader, self._fs.open(self._at(name), "wb") as writer:
                entry = _copy(reader, writer)
            if self._is_local:
                sync(Path(self._at(name)))
            return entry

    def take(self, source: Path, name: str) -> FileEntry:
        """As `upload`, of a file that nobody needs any more: where it lies on the same disk, it is moved."""
        with self._answering("write", name):
            if self._is_local:
                self._make_parent(name)
                target = Path(self._at(name))
                try:
                    source.replace(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                else:
                    sync(target)
                    with target.open("rb") as reader:
                        return _copy(reader, None)
            return self.upload(source, name)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        with self._answering("write", name):
            self._make_parent(name)
            if not self._is_local:
                self._fs.pipe_file(self._at(name), content)
                return
            path = Path(self._at(name))
            fresh = path.with_name(f".{path.name}.new")
            write_durably(fresh, content)
            fresh.replace(path)
            sync(path.parent)

    def read(self, name: str) -> bytes | None:
        """A small file's content."""
        with self._answering("read", name):
            try:
                return bytes(self._fresh().cat_file(self._at(name)))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def entry(self, name: str) -> FileEntry | None:
        """Size and SHA-256 of a file, read anew."""
        with self._answering("read", name):
            try:
                with self._fresh().open(self._at(name), "rb") as reader:
                    return _copy(reader, None)
            except (FileNotFoundError, IsADirectoryError):
                return None

    def download(self, name: str, target: Path) -> FileEntry:
        """Copy a file to the local disk; returns its size and SHA-256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._answering("read", name),
            self._fresh().open(self._at(name), "rb") as reader,
            target.open("wb") as writer,
        ):
            return _copy(reader, writer)

    def folders(self) -> list[str]:
        """Names of the folders right below the place, sorted."""
        with self._answering("list"):
            try:
                found = self._fresh().ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            return sorted(PurePosixPath(each["name"]).name for each in found if each["type"] == "directory")

    def files(self, folder: str) -> list[str]:
        """Names of all files below a folder, relative to it, sorted."""
        with self._answering("list", folder):
            base = self._at(folder)
            return sorted(str(PurePosixPath(each).relative_to(base)) for each in self._fresh().find(base))

    def remove_file(self, name: str) -> None:
        """Take a file away, if it is there."""
        with self._answering("remove", name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def remove_folder(self, name: str) -> None:
        """Take a folder away with all that is in it, if it is there."""
        with self._answering("remove", name), contextlib.suppress(FileNotFoundError):
            self._fresh().rm(self._at(name), recursive=True)

    def local(self, name: str) -> Path | None:
        """The path of a file or folder on this machine's disk, None for remote storage."""
        return Path(self._at(name)) if self._is_local else None

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_parent(self, name: str) -> None:
        if self._is_local:
            os.makedirs(os.path.dirname(self._at(name)), exist_ok=True)

    def _fresh(self) -> Any:
        """The file system without what it remembers of listings: other processes write here too."""
        self._fs.invalidate_cache()
        return self._fs

    @contextlib.contextmanager
    def _answering(self, action: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except RayloomError:
            raise
        except Exception as error:  # drivers of object stores raise their own kinds
            where = f"{self.place}/{name}" if name else self.place
            raise TrainingError(
                f"checkpoint storage: cannot {action} {where}: {error or type(error).__name__}"
            ) from error


def _copy(reader: BinaryIO, writer: BinaryIO | None) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    while block := reader.read(_BLOCK):
        digest.update(block)
        size += len(block)
        if writer is not None:
            writer.write(block)
    return FileEntry(size=size, sha256=digest.hexdigest())
