"""The examples of a tokenised corpus, read from its shards when they are asked for."""

from __future__ import annotations

import json
import mmap
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayloom.data.dataset import EncodingReport, Example
from rayloom.data.shard_files import ENTRY, Format
from rayloom.errors import DataError

MANIFEST = "manifest.json"
_RESIDENT_BYTES = 128 << 20
"""Of shards, so much at most counts as memory of this process."""
_FAULT_BYTES = 2 << 20
"""What one read may map: with the page that it needs, Linux 6 maps all of the huge page around it."""
_NAMES = ("ids", "labels", "entries")
_MOST_MAPS = 256
"""Each holds a file open, and of those a process may have about a thousand."""


class ShardedDataset:
    """One split of a tokenised corpus; takes the place of an `rayloom.data.EncodedDataset`.

    Only its place travels between processes. Shards are mapped, and their pages given back to the system every so
    often, so that reading all of a corpus takes no more memory than reading a part of it.

    Args:
        folder: The corpus, with its manifest.
        split: Name of the split.

    Raises:
        DataError: At the first use: the folder is not seen from here, or is not whole.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._touched: list[mmap.mmap] = []
        self._maps: dict[tuple[int, str], mmap.mmap] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardedDataset, (self.folder, self.split)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        shard, entry = self._entry(index)
        form = self._form
        ids = self._ids(shard, "ids", int(entry["start"]), int(entry["size"]))
        inputs: list[int] = ids.tolist()
        if form.plain:
            labels = inputs
        else:
            labels = form.labels(self._ids(shard, "labels", int(entry["label_start"]), int(entry["label_size"])))
        cut = int(entry["cut"])
        return Example(inputs, labels, bool(cut & 1), bool(cut & 2))

    @property
    def seq2seq(self) -> bool:
        """Labels are a sequence of their own."""
        return self._form.seq2seq

    @property
    def digest(self) -> str:
        """Hash of all examples, in order."""
        return str(self._told["digest"])

    @cached_property
    def report(self) -> EncodingReport:
        """What encoding did."""
        return EncodingReport(**self._told["report"])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Input ids of each example; mapped from disk."""
        return self._index("lengths")

    @cached_property
    def target_counts(self) -> npt.NDArray[np.int32]:
        """Positions of each example that add to the loss; mapped from disk."""
        return self._index("targets")

    @property
    def num_tokens(self) -> int:
        """Input ids in all, plus the targets' where they are a sequence of their own."""
        return int(self.lengths.sum(dtype=np.int64)) + (self._told["num_labels"] if self.seq2seq else 0)

    def first_ids(self, count: int) -> npt.NDArray[np.int64]:
        """At least one and at most so many of the ids that the first examples have."""
        ids: list[int] = []
        for index in range(len(self)):
            ids += self[index].input_ids
            if len(ids) >= count:
                break
        return np.array(ids[:count], dtype=np.int64)

    def place(self, index: int) -> str:
        """Names an example for people: where its row was read."""
        shard, entry = self._entry(index)
        return f"{self._manifest['sources'][shard]} row {int(entry['number'])}"

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                "there are no tokenised rows here: set dataset.cache_dir to a folder that all machines share",
                file=self.folder,
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(
                f"the manifest of these tokenised rows cannot be read: {error}", file=self.folder
            ) from error
        return content

    @cached_property
    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = self._manifest["splits"][self.split]
        for shard, sizes in enumerate(told["sizes"]):
            for name, size in zip(_NAMES, sizes, strict=True):
                path = self._path(shard, name)
                if not path.is_file() or path.stat().st_size != size:
                    raise DataError(
                        "this part of a tokenised corpus is missing or damaged: start again, and it is made anew",
                        file=path,
                    )
        return told

    @cached_property
    def _form(self) -> Format:
        return Format(**self._manifest["format"])

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Number of examples up to the end of each shard."""
        return np.cumsum(self._told["examples"], dtype=np.int64)

    @cached_property
    def _order(self) -> npt.NDArray[np.int64] | None:
        return self._index("order") if self._told["ordered"] else None

    def _index(self, name: str) -> npt.NDArray[Any]:
        assert self._told, "missing folders and shards are noticed first"
        path = self.folder / f"{self.split}.{name}.npy"
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"this part of a tokenised corpus is damaged ({error}): start again", file=path) from error
        return array

    def _path(self, shard: int, name: str) -> Path:
        return self.folder / f"shard-{shard:05d}" / f"{self.split}.{name}"

    def _entry(self, index: int) -> tuple[int, Any]:
        """The shard that an example lies in, and its entry there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        if self._order is not None:
            index = int(self._order[index])
        shard = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        start = (index - before) * ENTRY.itemsize
        return shard, np.frombuffer(self._read(shard, "entries", start, ENTRY.itemsize), dtype=ENTRY)[0]

    def _ids(self, shard: int, name: str, start: int, size: int) -> npt.NDArray[Any]:
        dtype = np.dtype(self._form.dtype)
        return np.frombuffer(self._read(shard, name, start * dtype.itemsize, size * dtype.itemsize), dtype=dtype)

    def _read(self, shard: int, name: str, start: int, size: int) -> bytes:
        if not size:
            return b""
        with self._lock:
            mapped = self._maps.get((shard, name)) or self._mapped(shard, name)
            if len(self._touched) * _FAULT_BYTES >= _RESIDENT_BYTES:
                self._give_back()
            self._touched.append(mapped)
            return mapped[start : start + size]

    def _mapped(self, shard: int, name: str) -> mmap.mmap:
        while len(self._maps) >= _MOST_MAPS:
            self._give_back()
            self._maps.pop(next(iter(self._maps))).close()
        with self._path(shard, name).open("rb") as file:
            self._maps[shard, name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard, name]

    def _give_back(self) -> None:
        """Pages that have been read count as this process's memory until it says that it can do without them."""
        for mapped in set(self._touched):
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
        self._touched.clear()
