"""Files and folders, local or behind an fsspec URI: hashes, atomic folders, the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from rayloom.artifacts.manifest import FileEntry
from rayloom.errors import ArtifactError

_BLOCK = 1 << 20


def cache_root(given: Path | str | None = None) -> Path:
    """Where Rayloom keeps what it can make again: the given folder, ``$RAYLOOM_CACHE`` or ``~/.cache/rayloom``."""
    return Path(given or os.environ.get("RAYLOOM_CACHE") or Path.home() / ".cache" / "rayloom").expanduser()


def local_path(location: str | Path) -> Path | None:
    """The path that a location means on this machine, or None for a remote URI."""
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def remote(location: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path on it.

    Raises:
        ArtifactError: The scheme is unknown, or its driver is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise ArtifactError(f"{location}: no access to this kind of storage: {error}") from error
    return filesystem, str(path).rstrip("/")


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size=path.stat().st_size, sha256=digest)


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted, with ``/`` between their parts."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sibling_folder(destination: Path) -> Iterator[Path]:
    """A fresh hidden folder beside the destination, on the same disk; gone afterwards if still there."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = destination.parent / f".{destination.name}.new-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(finished: Path, destination: Path) -> None:
    """Put a finished folder in the place of another; a reader sees the old one, none, or the new one.

    Where the second rename fails, the old folder is put back.
    """
    old = destination.parent / f".{destination.name}.old-{uuid.uuid4().hex[:12]}"
    had_old = destination.exists()
    if had_old:
        destination.rename(old)
    try:
        finished.rename(destination)
    except OSError:
        if had_old:
            old.rename(destination)
        raise
    sync(destination.parent)
    if had_old:
        shutil.rmtree(old)


def publish_folder(destination: Path, build: Callable[[Path], None]) -> Path:
    """Build a cached folder once, however many processes ask for it.

    Args:
        destination: Folder that exists only when it is whole. Its name must tell its content apart.
        build: Fills the given empty folder; called by one process at a time, and only if needed.

    Returns:
        The destination.
    """
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.parent / f".{destination.name}.lock"):
        if not destination.is_dir():
            with sibling_folder(destination) as folder:
                build(folder)
                folder.rename(destination)
    return destination


def renew_folder(destination: Path, build: Callable[[Path], None], is_whole: Callable[[], bool]) -> None:
    """Build a kept folder where it is absent or damaged, once, however many processes find that out.

    Args:
        destination: As of `publish_folder`.
        build: As of `publish_folder`; where it fails, the damaged folder stays.
        is_whole: Looks at the destination.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.parent / f".{destination.name}.lock"):
        if not is_whole():
            with sibling_folder(destination) as folder:
                build(folder)
                replace_folder(folder, destination)


def entry_of(content: bytes) -> FileEntry:
    """Size and SHA-256 of a file's content."""
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
