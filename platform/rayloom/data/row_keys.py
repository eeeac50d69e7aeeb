"""One key per row of a big corpus: rows with equal inputs have equal keys, and splits are made by their order.

Eight bytes per row lie on disk. They are looked at in stretches of their range, so that memory stays bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayloom.data.blocks import Block, Reading, read_block
from rayloom.data.columns import Columns
from rayloom.data.scanning import Scan, write_whole
from rayloom.data.work import Workers

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SHARD_BLOCKS = 8
"""Blocks of one piece of work, and of one shard."""
PART_ROWS = 1 << 22
"""About so many keys are held in memory at a time."""


@dataclass(frozen=True)
class RowKeys:
    """The keys of all rows of one source.

    Args:
        files: Their ``.npy`` files, in order.
        counts: Rows of each block.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]

    @cached_property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    def between(self, low: int, high: int) -> tuple[Keys, Places]:
        """Keys in [low, high], and their rows, counted from 0; in the order of rows."""
        keys, rows, start = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
        for file in self.files:
            stored = np.load(file, mmap_mode="r")
            chosen = np.flatnonzero((stored >= np.uint64(low)) & (stored <= np.uint64(high)))
            keys.append(stored[chosen])
            rows.append(chosen + start)
            start += len(stored)
        return np.concatenate(keys), np.concatenate(rows)


def parts(num_rows: int, *, part_rows: int = PART_ROWS) -> Iterator[tuple[int, int]]:
    """Ranges of keys, rising, which together are all: of about part_rows keys each."""
    count = -(-num_rows // part_rows)
    bounds = [(place << 64) // count for place in range(count + 1)]
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        yield low, high - 1


def shards_of(blocks: Sequence[Block]) -> list[tuple[Block, ...]]:
    """Blocks in groups, each a piece of work."""
    return [tuple(blocks[start : start + SHARD_BLOCKS]) for start in range(0, len(blocks), SHARD_BLOCKS)]


def collect_keys(
    scan: Scan, columns: Columns, reading: Reading, seed: int, *, folder: Path, workers: Workers
) -> RowKeys:
    """Read, check and key all rows of a source. Pieces that lie in the folder already are not made again.

    Args:
        scan: The source.
        columns: What is an input.
        reading: How plain text becomes rows.
        seed: Of the split.
        folder: Where keys are kept; belongs to these arguments alone.
        workers: Who reads.

    Raises:
        DataError: Of the first row that cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = shards_of(scan.blocks)
    pieces = [(folder / f"keys-{number:05d}.npy", blocks) for number, blocks in enumerate(groups)]
    work = partial(_key_blocks, columns=columns, reading=reading, seed=seed)
    sizes = [sum(block.size for block in blocks) for blocks in groups]
    found = list(workers(f"reading {Path(scan.file).name}", work, pieces, sizes))
    return RowKeys(tuple(file for file, _ in pieces), tuple(count for counts in found for count in counts))


def _key_blocks(piece: tuple[Path, tuple[Block, ...]], *, columns: Columns, reading: Reading, seed: int) -> list[int]:
    """Write the keys of some blocks, and say how many rows each block has."""
    file, blocks = piece
    done = file.with_suffix(".json")
    counts = _finished(file, done)
    if counts is not None:
        return counts
    keys: list[int] = []
    counts = []
    for block in blocks:
        before = len(keys)
        for row in read_block(block, reading):
            columns.check([row])
            keys.append(_order(columns.key(row), seed))
        counts.append(len(keys) - before)
    content = io.BytesIO()
    np.save(content, np.array(keys, dtype=np.uint64))
    write_whole(file, content.getvalue())  # another run may be making the very same keys
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    write_whole(done, json.dumps({"counts": counts, "sha256": sha256}).encode())
    return counts


def _finished(file: Path, done: Path) -> list[int] | None:
    """Row counts of keys that are whole; None where they have to be made."""
    try:
        stored: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if hashlib.sha256(file.read_bytes()).hexdigest() == stored["sha256"]:
            return list(stored["counts"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def _order(key: str, seed: int) -> int:
    """Where the split sorts an input to: the start of the hash by which `load_splits` sorts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")
