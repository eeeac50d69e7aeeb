"""One shard of a tokenised corpus on disk: ids in flat arrays, and an entry per example that says where.

A shard's folder comes into being by a rename, so one that exists was finished; its ``shard.json`` holds the sizes and
hashes of its files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rayloom.data.dataset import IGNORED, Example

ENTRY = np.dtype(
    [
        ("start", "<u4"),  # first input id
        ("size", "<u4"),
        ("label_start", "<u4"),
        ("label_size", "<u4"),
        ("targets", "<u4"),  # labels that add to the loss
        ("row", "<u8"),  # in the source, from 0
        ("number", "<u8"),  # of the row in its file, for people
        ("cut", "u1"),  # 1: input cut, 2: target cut
    ]
)
_SMALL_IGNORED = 0xFFFF
_FLUSH_IDS = 1 << 18
_ARRAYS = ("ids", "labels", "entries")


@dataclass(frozen=True)
class Format:
    """How ids are stored.

    Args:
        small: In two bytes each, instead of four.
        seq2seq: Labels are a sequence of their own.
        plain: Labels are the input ids, and are not stored.
    """

    small: bool
    seq2seq: bool
    plain: bool

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of ids and labels."""
        return "<u2" if self.small else "<i4"

    def stored_labels(self, labels: list[int]) -> npt.NDArray[Any]:
        """Labels as they are stored."""
        array = np.asarray(labels, dtype=np.int64)
        return np.where(array == IGNORED, _SMALL_IGNORED if self.small else IGNORED, array).astype(self.dtype)

    def labels(self, stored: npt.NDArray[Any]) -> list[int]:
        """Labels as they were."""
        wide = stored.astype(np.int64)
        labels: list[int] = (np.where(wide == _SMALL_IGNORED, IGNORED, wide) if self.small else wide).tolist()
        return labels

    def dict(self) -> dict[str, bool]:
        """For JSON."""
        return asdict(self)


def fits_small(largest_id: int) -> bool:
    """Whether ids up to this one fit into two bytes, beside the mark of ignored labels."""
    return largest_id < _SMALL_IGNORED


class ExampleFiles:
    """The three files of one split in a shard that is being written; a context, which closes them.

    Args:
        folder: The shard's.
        split: Name of the split, the start of the files' names.
        form: How ids are stored.
    """

    def __init__(self, folder: Path, split: str, form: Format) -> None:
        self._form = form
        self._files: dict[str, BinaryIO] = {name: (folder / f"{split}.{name}").open("wb") for name in _ARRAYS}
        self._ids: list[int] = []
        self._labels: list[npt.NDArray[Any]] = []
        self._entries: list[tuple[int, ...]] = []
        self._num_ids = self._num_labels = 0
        self.num_examples = 0

    def add(self, example: Example, *, row: int, number: int) -> None:
        """Append an example."""
        size, label_size = len(example.input_ids), len(example.labels)
        counted = example.labels if self._form.seq2seq else example.labels[1:]
        targets = len(counted) - counted.count(IGNORED)
        cut = example.input_truncated + 2 * example.target_truncated
        self._entries.append((self._num_ids, size, self._num_labels, label_size, targets, row, number, cut))
        self._ids += example.input_ids
        self._num_ids += size
        if not self._form.plain:
            self._labels.append(self._form.stored_labels(example.labels))
            self._num_labels += label_size
        self.num_examples += 1
        if len(self._ids) >= _FLUSH_IDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come."""
        self._files["ids"].write(np.array(self._ids, dtype=self._form.dtype).tobytes())
        self._files["entries"].write(np.array(self._entries, dtype=ENTRY).tobytes())
        for labels in self._labels:
            self._files["labels"].write(labels.tobytes())
        self._ids, self._labels, self._entries = [], [], []

    def __enter__(self) -> ExampleFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


class NewShard:
    """A shard's folder while it is filled; left without `finish`, nothing of it stays.

    Args:
        folder: Where it will be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))

    def __enter__(self) -> NewShard:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.building, ignore_errors=True)

    def finish(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Put the folder in its place, with what is told of it and the hashes of its files."""
        files = {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(self.building.iterdir())}
        told = {**content, "files": files}
        (self.building / "shard.json").write_text(json.dumps(told), encoding="utf-8")
        shutil.rmtree(self._folder, ignore_errors=True)
        self.building.rename(self._folder)
        return told


def finished_shard(folder: Path) -> dict[str, Any] | None:
    """What is told of a shard whose files are all whole; None of any other."""
    try:
        told: dict[str, Any] = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
        whole = all(
            (folder / name).stat().st_size == size and sha256_of(folder / name) == sha256
            for name, (size, sha256) in told["files"].items()
        )
        return told if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
