"""The split of a corpus larger than memory: made once, kept in the cache, and equal to that of `load_splits`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from rayloom.artifacts import cache_root
from rayloom.config import DatasetConfig
from rayloom.data.blocks import BLOCK_BYTES, Reading
from rayloom.data.columns import Columns
from rayloom.data.exported import exported_files
from rayloom.data.row_keys import SHARD_BLOCKS, RowKeys, collect_keys
from rayloom.data.scanning import Scan, scan_file, write_whole
from rayloom.data.shard_files import sha256_of
from rayloom.data.sides import SPLITS, limit_rows, shared_inputs, split_off
from rayloom.data.streaming import Corpus, Source, StreamedRows, files_of
from rayloom.data.work import Workers, this_process
from rayloom.errors import DataError

_VERSION = 1
"""Goes up when the same files are to be split in another way."""


def split_corpus(dataset: DatasetConfig, columns: Columns, workers: Workers = this_process) -> Corpus:
    """Check and split the files of a run, holding a byte per row of them. The result is kept in the cache.

    Args:
        dataset: Names the files, or a dataset, which is written to files first.
        columns: What is read.
        workers: Who reads the files.

    Raises:
        DataError, HubError: As `rayloom.data.load_splits`.
    """
    reading = Reading(dataset.text_column, dataset.text_unit)
    root = cache_root(dataset.cache_dir).absolute() / "corpora"  # Ray tasks have other working folders
    exported = root / "datasets"
    paths = exported_files(dataset, exported, row_group_bytes=BLOCK_BYTES) if dataset.name else files_of(dataset)
    scans = {
        split: scan_file(path, reading, memory=root / "scans", block_bytes=BLOCK_BYTES) for split, path in paths.items()
    }
    shares = {"test": dataset.test_fraction, "validation": dataset.validation_fraction}
    splitting = _Splitting(
        scans=scans,
        reading=reading,
        columns=columns,
        seed=dataset.split_seed,
        shares={split: share for split, share in shares.items() if split not in scans},
        limits=dict(
            zip(SPLITS, (dataset.max_train_rows, dataset.max_validation_rows, dataset.max_test_rows), strict=True)
        ),
    )
    folder = root / "splits" / splitting.digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "lock"):
            if splitting.finished(folder) is None:
                splitting.make(folder, root / "keys", workers)
            made = splitting.finished(folder)
    except OSError as error:
        raise DataError(
            f"the splits of a corpus cannot be kept here ({error}); set dataset.cache_dir or RAYLOOM_CACHE", file=folder
        ) from error
    assert made is not None, "what was just made is whole"
    return splitting.corpus(folder, made)


@dataclass(frozen=True)
class _Splitting:
    """What decides a split, and the making of it."""

    scans: dict[str, Scan]
    reading: Reading
    columns: Columns
    seed: int
    shares: dict[str, float]
    limits: dict[str, int | None]

    @cached_property
    def digest(self) -> str:
        """Hash of the files' content and of the settings."""
        content = {split: scan.sha256 for split, scan in self.scans.items()}
        kinds = [Path(scan.file).suffix.lower() for scan in self.scans.values()]
        cuts = [[(block.start, block.stop) for block in scan.blocks] for scan in self.scans.values()]
        settings = [_VERSION, asdict(self.reading), repr(self.columns), self.seed, self.shares, self.limits]
        return hashlib.sha256(json.dumps([content, kinds, cuts, settings]).encode()).hexdigest()

    def make(self, folder: Path, keys_root: Path, workers: Workers) -> None:
        """Write sides and orders, and last of all what there is."""
        keys = {split: self._keys(scan, keys_root, workers) for split, scan in self.scans.items()}
        sides = {split: np.full(each.num_rows, SPLITS.index(split), np.uint8) for split, each in keys.items()}
        if not all(len(each) for each in sides.values()):
            empty = next(split for split, each in sides.items() if not len(each))
            raise DataError("the file has no rows", file=self.scans[empty].file)
        if self.shares:
            split_off(keys["train"], self.shares, sides["train"], file=self.scans["train"].file)
        for split, limit in self.limits.items():
            order = limit_rows(sides[self._source(split)], split, limit, self.seed)
            if order is not None:
                np.save(folder / f"{split}-order.npy", order)
        for split, each in sides.items():
            np.save(folder / f"{split}-sides.npy", each)
        content = {
            "counts": {split: each.counts for split, each in keys.items()},
            "warnings": _overlaps(keys),
            "files": {path.name: sha256_of(path) for path in sorted(folder.glob("*.npy"))},
        }
        write_whole(folder / "split.json", json.dumps(content).encode())

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """What `make` wrote; None where it is not whole."""
        try:
            content: dict[str, Any] = json.loads((folder / "split.json").read_text(encoding="utf-8"))
            if all(sha256_of(folder / name) == sha256 for name, sha256 in content["files"].items()):
                return content
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return None

    def corpus(self, folder: Path, content: dict[str, Any]) -> Corpus:
        """The finished split."""
        sources = {
            split: Source(scan, tuple(content["counts"][split]), folder / f"{split}-sides.npy")
            for split, scan in self.scans.items()
        }
        rows = {}
        for split in SPLITS:
            name = f"{split}-order.npy"
            order = np.load(folder / name) if name in content["files"] else None
            rows[split] = StreamedRows(sources[self._source(split)], split, self.reading, order)
        return Corpus(rows, self.reading, self.digest, tuple(content["warnings"]))

    def _source(self, split: str) -> str:
        return split if split in self.scans else "train"

    def _keys(self, scan: Scan, root: Path, workers: Workers) -> RowKeys:
        kind = Path(scan.file).suffix.lower()
        cuts = [(block.start, block.stop) for block in scan.blocks]
        content = [_VERSION, SHARD_BLOCKS, scan.sha256, kind, cuts, asdict(self.reading), repr(self.columns), self.seed]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return collect_keys(scan, self.columns, self.reading, self.seed, folder=root / name, workers=workers)


def _overlaps(keys: dict[str, RowKeys]) -> list[str]:
    """Inputs that explicit files share: counted and told, not removed."""
    told = []
    for place, first in enumerate(SPLITS):
        for second in SPLITS[place + 1 :]:
            count = shared_inputs(keys[first], keys[second]) if first in keys and second in keys else 0
            if count:
                total = keys[second].num_rows
                told.append(f"{count} of {total} {second} rows have an input that is in {first} as well")
    return told
