"""What an artifact says about where it comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from rayloom.artifacts import Artifact, open_artifact, storage
from rayloom.artifacts.manifest import MANIFEST_FILE
from rayloom.errors import ArtifactError
from rayloom.registry.records import Lineage


def manifest_digest(location: str) -> str:
    """SHA-256 of the manifest of an artifact; reads nothing else.

    Args:
        location: Folder or URI.

    Raises:
        ArtifactError: There is none.
    """
    local = storage.local_path(location)
    try:
        if local is not None:
            content = (local / MANIFEST_FILE).read_bytes()
        else:
            filesystem, root = storage.remote(location)
            content = filesystem.cat_file(f"{root}/{MANIFEST_FILE}")
    except OSError as error:
        raise ArtifactError(f"{location}: {MANIFEST_FILE} cannot be read ({error})") from None
    return hashlib.sha256(content).hexdigest()


def opened(location: str) -> tuple[Artifact, str]:
    """An artifact with every file checked, and the digest of its manifest.

    Raises:
        ArtifactError: No artifact, or a damaged one.
    """
    artifact = open_artifact(location)
    return artifact, manifest_digest(str(artifact.path))


def lineage_of(artifact: Artifact, source: str, parent: str | None) -> Lineage:
    """The lineage that an artifact carries.

    Args:
        artifact: The artifact.
        source: Where it was registered from.
        parent: The version that its training started from.
    """
    manifest = artifact.manifest
    version, _, commit = manifest.code_version.partition("+g")
    return Lineage(
        run=manifest.name,
        source=source,
        created=manifest.created,
        data_hash=manifest.data_hash,
        config_hash=manifest.config_hash,
        config=config_of(artifact),
        code_version=version,
        commit=commit or None,
        base=manifest.base.name if manifest.base is not None else None,
        parent=parent,
    )


def config_of(artifact: Artifact) -> dict[str, Any]:
    """The run's resolved config; empty where the artifact has none."""
    if not artifact.config_path.is_file():
        return {}
    values = yaml.safe_load(artifact.config_path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def trained_from(artifact: Artifact) -> str | None:
    """Digest of the artifact that training started from, if the config names one that still lies there."""
    model = config_of(artifact).get("model")
    name = model.get("name") if isinstance(model, dict) else None
    if not isinstance(name, str) or not (Path(name).expanduser() / MANIFEST_FILE).is_file():
        return None
    return manifest_digest(str(Path(name).expanduser()))
