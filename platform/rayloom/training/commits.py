"""What stands in a checkpoint beside its files: each rank's list of them, and the mark that it is whole."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayloom.artifacts.manifest import FileEntry
from rayloom.config import RunConfig

COMMIT = "COMMIT.json"
_FOLDER = re.compile(r"step-\d{8,}-[0-9a-z]+")

Files = dict[str, FileEntry]
Identity = dict[str, str]
"""What a run's checkpoints have in common, by name, as hashes: such as ``config`` and ``data``."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: Literal[1] = 1
    attempt: str
    step: int = Field(ge=0)
    world_size: int = Field(ge=1)

    @property
    def folder(self) -> str:
        """Name of the checkpoint's folder."""
        return folder_name(self.step, self.attempt)

    def dump(self) -> bytes:
        """JSON with a checksum over itself: a flipped bit in a figure must not pass."""
        return json.dumps({"sha256": _digest(self.model_dump()), "record": self.model_dump()}, indent=1).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read what `dump` wrote.

        Raises:
            ValueError: It is something else, or damaged.
        """
        try:
            outer = json.loads(content)
            record, expected = outer["record"], outer["sha256"]
        except (ValueError, KeyError, TypeError):
            raise ValueError("is no record of a checkpoint") from None
        if _digest(record) != expected:
            raise ValueError("does not match its own checksum")
        return cls.model_validate(record)


class RankPart(_Record):
    """``rank<r>.json``: one rank has uploaded these files."""

    rank: int = Field(ge=0)
    files: Files

    @staticmethod
    def name(rank: int) -> str:
        """Its file's name."""
        return f"rank{rank}.json"


class Commit(_Record):
    """``COMMIT.json``, written last: the checkpoint exists.

    Attributes:
        identity: See `Identity`.
        progress: The place in the run, as a dictionary.
        metrics: Validation figures of exactly these weights; empty if they were not evaluated.
        score: Figure that checkpoints are compared by, larger is better; None without one.
        ranks: Files of each rank.
        committed: Time (UTC, ISO 8601).
    """

    identity: Identity
    progress: dict[str, Any]
    metrics: dict[str, float]
    score: float | None
    ranks: list[Files]
    committed: str

    @property
    def files(self) -> Files:
        """All files."""
        return {name: entry for part in self.ranks for name, entry in part.items()}

    @property
    def ranking(self) -> tuple[float, int] | None:
        """Sorts checkpoints by quality, the best one last; None without a score. Of equals, the earlier is better."""
        return None if self.score is None or self.score != self.score else (self.score, -self.step)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.ranks) != self.world_size:
            raise ValueError(f"lists the files of {len(self.ranks)} workers, but {self.world_size} made it")
        if len(self.files) != sum(map(len, self.ranks)):
            raise ValueError("lists a file twice")
        return self


def identity_of(config: RunConfig, data: str) -> Identity:
    """What decides the weights of a run, as hashes: checkpoints of another are never resumed.

    Args:
        config: The run's config.
        data: Hash of the encoded train rows.
    """
    # Only what was set counts, so that a key that a later version adds changes no run. Data are known by content.
    sections = {name: getattr(config, name) for name in ("model", "training", "lora")}
    chosen = {name: each and each.model_dump(mode="json", exclude_defaults=True) for name, each in sections.items()}
    return {"config": _digest(chosen), "data": data}


def folder_name(step: int, attempt: str) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}-{attempt}"


def is_folder_name(name: str) -> bool:
    """Whether a folder can be a checkpoint."""
    return _FOLDER.fullmatch(name) is not None


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
