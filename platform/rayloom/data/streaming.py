"""Splits of a corpus that is larger than memory: the rows that `load_splits` gives, read from the files on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from rayloom.config import DatasetConfig
from rayloom.data.blocks import Block, Reading, is_json_list, read_block
from rayloom.data.hub import open_dataset, own_splits
from rayloom.data.rows import Row
from rayloom.data.scanning import Scan
from rayloom.data.sides import SPLITS

STREAMED_BYTES = 256 << 20
"""Larger files are streamed where the config does not say."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Way:
    """How the rows of a run are read.

    Args:
        streamed: In stretches, instead of whole.
        reason: For people.
    """

    streamed: bool
    reason: str


def way_of(dataset: DatasetConfig) -> Way:
    """Whether the rows of a run are streamed: as ``dataset.streaming`` says, else by their size on disk.

    Raises:
        DataError: A dataset by name cannot be opened.
        HubError: It has to come from the hub, which is out of reach.
    """
    if dataset.streaming is not None:
        return Way(dataset.streaming, f"{'streamed' if dataset.streaming else 'whole'}: dataset.streaming says so")
    files = [Path(path) for path in files_of(dataset).values() if Path(path).is_file()]
    size = _dataset_bytes(dataset) if dataset.name else sum(path.stat().st_size for path in files)
    what = "rows" if dataset.name else "files"
    told = f"{size / _MIB:.0f} MiB of {what}, {{}} than {STREAMED_BYTES // _MIB} (dataset.streaming)"
    if size <= STREAMED_BYTES:
        return Way(False, f"whole: {told.format('not more')}")
    lists = [path.name for path in files if path.suffix.lower() == ".json" and is_json_list(str(path))]
    if lists:
        return Way(False, f"whole: {lists[0]} is a JSON list; as JSON Lines it could be streamed")
    return Way(True, f"streamed: {told.format('more')}")


def _dataset_bytes(dataset: DatasetConfig) -> int:
    name = dataset.name or ""
    splits = own_splits(open_dataset(name, dataset.subset), name)
    return sum(int(rows.data.nbytes) for rows in splits.values())


def files_of(dataset: DatasetConfig) -> dict[str, str]:
    """The files that the config names, by split."""
    paths = {"train": dataset.train_file, "validation": dataset.validation_file, "test": dataset.test_file}
    return {split: path for split, path in paths.items() if path}


@dataclass(frozen=True)
class Source:
    """A data file, and who takes which of its rows.

    Args:
        scan: The file.
        counts: Rows of each of its blocks.
        sides_file: Array with the `Sides` of its rows.
    """

    scan: Scan
    counts: tuple[int, ...]
    sides_file: Path

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Row that each block starts at, from 0, and the number of rows."""
        return np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64))).astype(np.int64)

    def sides(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Sides of some rows."""
        return np.array(np.load(self.sides_file, mmap_mode="r")[start:stop])


class StreamedRows(Sequence[Row]):
    """The rows of a split, read from the file when they are asked for. One row costs the reading of one block.

    Args:
        source: The file.
        split: The split.
        reading: How plain text becomes rows.
        order: The rows in the order in which they are used; all of the split in their own order where None.
    """

    def __init__(
        self, source: Source, split: str, reading: Reading, order: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.source, self.split, self.reading, self.order = source, split, reading, order
        code = SPLITS.index(split)
        bounds = source.starts.tolist()
        per_block = [np.count_nonzero(source.sides(a, b) == code) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        self._ends = np.cumsum(per_block, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self._read(range(len(self))[index])
        return self._read([range(len(self))[index]])[0]

    @cached_property
    def about_bytes(self) -> int:
        """About how much of the file these rows are."""
        per_block = np.diff(self._ends, prepend=0)
        parts = zip(self.source.scan.blocks, per_block.tolist(), self.source.counts, strict=True)
        return sum(block.size * count // max(1, total) for block, count, total in parts)

    def __iter__(self) -> Iterator[Row]:
        if self.order is None:
            yield from self.in_file_order()
            return
        for start in range(0, len(self), 1000):
            yield from self[start : start + 1000]

    def in_file_order(self) -> Iterator[Row]:
        """All rows, each block read once."""
        for number, block in enumerate(self.source.scan.blocks):
            wanted = set(self._in_block(number).tolist())
            if wanted:
                yield from (row for place, row in self._rows(block, number) if place in wanted)

    def _read(self, indices: Sequence[int]) -> list[Row]:
        places = [self._place(index) for index in indices]
        by_block: dict[int, set[int]] = {}
        for place in places:
            number = int(np.searchsorted(self.source.starts, place, side="right")) - 1
            by_block.setdefault(number, set()).add(place)
        found: dict[int, Row] = {}
        for number in sorted(by_block):
            wanted = by_block[number]
            rows = self._rows(self.source.scan.blocks[number], number)
            found |= {place: row for place, row in rows if place in wanted}
        return [found[place] for place in places]

    def _place(self, index: int) -> int:
        """Row of the file that a row of the split is."""
        if self.order is not None:
            return int(self.order[index])
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return int(self._in_block(number)[index - before])

    def _in_block(self, number: int) -> npt.NDArray[np.int64]:
        """The split's rows of a block."""
        start, stop = self.source.starts[number : number + 2].tolist()
        places: npt.NDArray[np.int64] = start + np.flatnonzero(
            self.source.sides(start, stop) == SPLITS.index(self.split)
        )
        return places

    def _rows(self, block: Block, number: int) -> Iterator[tuple[int, Row]]:
        return enumerate(read_block(block, self.reading), start=int(self.source.starts[number]))


@dataclass(frozen=True)
class Corpus:
    """A split corpus on disk.

    Args:
        rows: By split.
        reading: How plain text becomes rows.
        digest: Hash of the files' content and of all that decides the split.
        warnings: As those of `rayloom.data.Splits`.
    """

    rows: dict[str, StreamedRows]
    reading: Reading
    digest: str
    warnings: tuple[str, ...]
