"""From a version's name to its artifact: what serving, generation and the command line call."""

from __future__ import annotations

from pathlib import Path

from rayloom.registry.choosing import open_registry
from rayloom.registry.references import is_reference


def resolve(reference: str, *, root: Path | str | None = None) -> str:
    """Folder or URI of the artifact that ``NAME@VERSION``, ``NAME@STAGE`` or ``NAME`` (production) means now.

    Args:
        reference: What is wanted.
        root: Folder of the registry, or its place in MLflow; the default one where not given.

    Raises:
        RegistryError: There is no such version, or its artifact is not the registered one.
        ArtifactError: Its artifact is gone.
    """
    return open_registry(root).resolve(reference)


def locate(target: str) -> str:
    """A path, URI or hub name as it is; ``NAME@VERSION`` and ``NAME@STAGE`` as the artifact's place.

    A file or folder of that very name goes first.

    Raises:
        RegistryError: There is no such version.
    """
    if not is_reference(target) or Path(target).exists():
        return target
    return resolve(target)
