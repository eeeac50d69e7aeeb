"""The finished product of a run: a folder that says all that is needed to use the model. No torch, no ray."""

from rayloom.artifacts.card import model_card
from rayloom.artifacts.code_version import code_version
from rayloom.artifacts.manifest import (
    BASE_FOLDER,
    FORMAT_VERSION,
    BaseModelRef,
    FileEntry,
    GoldenCase,
    Limits,
    Manifest,
)
from rayloom.artifacts.opening import Artifact, ListedArtifact, list_artifacts, open_artifact
from rayloom.artifacts.publishing import Publication, publish, publish_again
from rayloom.artifacts.storage import cache_root, publish_folder

__all__ = [
    "BASE_FOLDER",
    "FORMAT_VERSION",
    "Artifact",
    "BaseModelRef",
    "FileEntry",
    "GoldenCase",
    "Limits",
    "ListedArtifact",
    "Manifest",
    "Publication",
    "cache_root",
    "code_version",
    "list_artifacts",
    "model_card",
    "open_artifact",
    "publish",
    "publish_again",
    "publish_folder",
]
