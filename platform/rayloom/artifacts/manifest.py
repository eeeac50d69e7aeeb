"""What ``manifest.json`` says about an artifact."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from rayloom.config import GenerationConfig
from rayloom.errors import ArtifactError

FORMAT_VERSION = 1
"""Grows when an older Rayloom could no longer read an artifact rightly."""

BASE_FOLDER = "base"
"""`BaseModelRef.name` of a base model that lies inside the artifact, and the folder it lies in."""

MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
CONFIG_FILE = "config.yaml"
WEIGHT_FOLDERS = ("model", "adapter", BASE_FOLDER)
"""Folders whose every file must stand in the manifest: loaders pick files up by name there."""


class _Entry(BaseModel):
    # Infinite metrics (an overflown perplexity) must survive JSON, which has no word for them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class GoldenCase(_Entry):
    """A prompt with the exact token ids that the model saw and wrote when it was published."""

    prompt: str
    context: str | None = None
    messages: list[dict[str, str]] | None = None
    prompt_ids: list[int]
    output_ids: list[int]


class BaseModelRef(_Entry):
    """The model under an adapter."""

    name: str
    """Hub name, ``package:`` file, or ``base`` for the folder inside the artifact."""
    revision: str | None = None

    @property
    def is_inside(self) -> bool:
        """Whether the artifact carries the base model itself."""
        return self.name == BASE_FOLDER


class Limits(_Entry):
    """Lengths in tokens that the model was trained with."""

    max_input_length: int
    max_target_length: int


class FileEntry(_Entry):
    """A file of the artifact."""

    size: int
    """Bytes."""
    sha256: str


class Manifest(_Entry):
    """All that is needed to use a model, and where it comes from."""

    format_version: int = FORMAT_VERSION
    name: str
    kind: Literal["full", "adapter"]
    family: str
    seq2seq: bool
    base: BaseModelRef | None = None
    """The model under an adapter; None for a full model."""
    template: dict[str, Any]
    """The prompt template's own fields."""
    limits: Limits
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    golden: list[GoldenCase] = Field(default_factory=list)
    data_hash: str
    config_hash: str
    code_version: str
    created: str
    """ISO 8601, UTC."""
    metrics: dict[str, float] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(default_factory=dict)
    """Every file but the manifest itself, by path in the artifact. `publish` fills it."""

    @field_serializer("generation")
    def _only_what_was_set(self, generation: GenerationConfig) -> dict[str, Any]:
        return generation.model_dump(mode="json", exclude_unset=True)

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
                raise ValueError(f"'{name}' leads out of the artifact")
        return files


def parse_manifest(content: bytes, place: str) -> Manifest:
    """A manifest from its file.

    Args:
        content: Of the file.
        place: Of the artifact, for messages.

    Raises:
        ArtifactError: It is none, damaged, or of a newer format.
    """
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{place}: {MANIFEST_FILE} is not valid JSON ({error}): publish it again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{place} is no artifact: its {MANIFEST_FILE} has no format_version")
    if version > FORMAT_VERSION:
        raise ArtifactError(f"{place} has format {version}; this Rayloom reads up to {FORMAT_VERSION}: upgrade rayloom")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{place}: {MANIFEST_FILE}, '{key}': {first['msg']}: publish it again") from None
