"""From a folder or URI to a checked artifact."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from rayloom.artifacts import storage
from rayloom.artifacts.hub import HubFiles, hub_place
from rayloom.artifacts.manifest import (
    BASE_FOLDER,
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHT_FOLDERS,
    Manifest,
    parse_manifest,
)
from rayloom.errors import ArtifactError

_MAX_LIST_DEPTH = 4


@dataclass(frozen=True)
class Artifact:
    """An artifact on this machine, checked against its manifest."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """Full model and tokenizer, as ``save_pretrained`` wrote them."""
        return self.path / "model"

    @property
    def adapter_path(self) -> Path:
        """PEFT adapter and tokenizer."""
        return self.path / "adapter"

    @property
    def base_path(self) -> Path:
        """Base model under the adapter, where the artifact carries it."""
        return self.path / BASE_FOLDER

    @property
    def config_path(self) -> Path:
        """The resolved config of the run."""
        return self.path / CONFIG_FILE


@dataclass(frozen=True)
class ListedArtifact:
    """An artifact that was found but not opened."""

    location: str
    """Folder or URI for `open_artifact`."""
    manifest: Manifest


def open_artifact(path: str | Path) -> Artifact:
    """Open an artifact and check every file's size and hash.

    Args:
        path: Folder, fsspec URI or ``hf://OWNER/NAME[@REVISION]``. A remote artifact is downloaded once into the cache.

    Raises:
        ArtifactError: No artifact, one of a newer format, or a damaged one.
        HubError: The hub is needed and cannot be reached, or does not give it.
    """
    local = storage.local_path(path)
    if local is None:
        return _download(str(path))
    local = local.expanduser().absolute()
    manifest = parse_manifest(_read_local_manifest(local), str(local))
    _verify(local, manifest)
    return Artifact(local, manifest)


def list_artifacts(root: str) -> list[ListedArtifact]:
    """All artifacts at most four folders below a root, newest first; what cannot be read is left out.

    Args:
        root: Folder or fsspec URI; one that does not exist holds none.
    """
    local = storage.local_path(root)
    filesystem, base = storage.remote(str(local.expanduser().absolute()) if local is not None else root)
    if not filesystem.exists(base):
        return []
    found = []
    for name in filesystem.find(base, maxdepth=_MAX_LIST_DEPTH + 1):
        inner = PurePosixPath(str(name)[len(base) :].lstrip("/"))
        if inner.name != MANIFEST_FILE or any(part.startswith(".") for part in inner.parts):
            continue
        folder = str(PurePosixPath(str(name)).parent)
        location = folder if local is not None else str(filesystem.unstrip_protocol(folder))
        try:
            found.append(ListedArtifact(location, parse_manifest(filesystem.cat_file(name), location)))
        except ArtifactError:
            continue
    return sorted(found, key=lambda artifact: artifact.manifest.created, reverse=True)


def _read_local_manifest(folder: Path) -> bytes:
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give the path of an artifact, as 'rayloom train' prints it")
    try:
        return (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} is no artifact: it has no {MANIFEST_FILE}. A checkpoint is for resuming; the artifact "
            "that a run makes of it lies in its 'artifact' folder"
        ) from None


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{folder}: '{name}' is missing. {_MEND}")
        size = path.stat().st_size
        if size != entry.size:
            raise ArtifactError(f"{folder}: '{name}' has {size} bytes instead of {entry.size}. {_MEND}")
        if storage.file_entry(path).sha256 != entry.sha256:
            raise ArtifactError(f"{folder}: '{name}' has changed since it was published. {_MEND}")
    for inner in WEIGHT_FOLDERS:
        if not (folder / inner).is_dir():
            continue
        for name in storage.files_below(folder / inner):
            if f"{inner}/{name}" not in manifest.files:
                raise ArtifactError(f"{folder}: '{inner}/{name}' is not part of the artifact: take it away")


_MEND = "The artifact is damaged: copy or publish it again"


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        _verify(folder, manifest)
    except ArtifactError:
        return False
    return True


class _Files(Protocol):
    """An artifact's files on another machine."""

    def manifest(self) -> bytes:
        """Its manifest."""

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """Download all other files."""


class _StoredFiles:
    """Files behind an fsspec URI."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._filesystem, self._root = storage.remote(uri)

    def manifest(self) -> bytes:
        try:
            content: bytes = self._filesystem.cat_file(f"{self._root}/{MANIFEST_FILE}")
        except FileNotFoundError:
            raise ArtifactError(f"{self._uri} is no artifact: it has no {MANIFEST_FILE}") from None
        except OSError as error:
            raise ArtifactError(f"{self._uri} cannot be read: {error}") from error
        return content

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        for name in manifest.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._filesystem.get_file(f"{self._root}/{name}", str(target))
            except OSError as error:
                raise ArtifactError(f"{self._uri}: '{name}' cannot be downloaded: {error}") from error


def _download(uri: str) -> Artifact:
    place = hub_place(uri)
    files: _Files = HubFiles(place) if place else _StoredFiles(uri)
    content = files.manifest()
    manifest = parse_manifest(content, uri)

    def build(folder: Path) -> None:
        files.fetch(manifest, folder)
        _verify(folder, manifest)
        storage.write_durably(folder / MANIFEST_FILE, content)

    digest = hashlib.sha256(content).hexdigest()[:24]
    local = storage.cache_root() / "artifacts" / digest
    if not _is_whole(local, manifest):  # absent or damaged here: what was published may well be whole
        storage.renew_folder(local, build, lambda: _is_whole(local, manifest))
    return Artifact(local, manifest)
