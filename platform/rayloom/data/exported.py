"""Datasets by name as Parquet files, which can be read in blocks by whoever sees the folder."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import filelock
import pyarrow.parquet as pq

from rayloom.config import DatasetConfig
from rayloom.data.hub import open_dataset, own_splits
from rayloom.errors import DataError

_VERSION = 1
"""Goes up when the same dataset is to be written in another way."""


def exported_files(dataset: DatasetConfig, root: Path, *, row_group_bytes: int) -> dict[str, str]:
    """Write the splits of a dataset to files, unless they lie there already.

    Args:
        dataset: Has the name.
        root: Folder of all such files.
        row_group_bytes: About the size of a file's row groups.

    Returns:
        Train, and validation and test where the dataset has them, to paths; rows and their order are the dataset's.

    Raises:
        DataError: The dataset cannot be opened or has no train split, or the files cannot be written.
        HubError: It has to come from the hub, which is out of reach.
    """
    name = dataset.name or ""
    found = own_splits(open_dataset(name, dataset.subset), name)
    # The library's fingerprint: the same for the same rows on disk, another after any change.
    content = [_VERSION, row_group_bytes, {split: rows._fingerprint for split, rows in found.items()}]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]+", "-", name.rstrip("/"))[-60:].strip("-")
    folder = root / f"{readable}-{digest}"
    paths = {split: folder / f"{split}.parquet" for split in found}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "lock"):
            for split, path in paths.items():
                if not path.is_file():
                    _write(found[split], path, f"writing {name}[{split}]", row_group_bytes)
    except OSError as error:
        raise DataError(
            f"the files of dataset '{name}' cannot be kept here ({error}); set dataset.cache_dir or RAYLOOM_CACHE",
            file=folder,
        ) from error
    return {split: str(path) for split, path in paths.items()}


def _write(rows: Any, path: Path, what: str, row_group_bytes: int) -> None:
    from datasets.utils import tqdm  # its bars are those of the download before, and are switched off with them

    beside = path.with_suffix(".part")  # under a lock: what an interrupted run has left is written over
    at_once = max(1, row_group_bytes * len(rows) // max(1, rows.data.nbytes))
    tables = rows.with_format("arrow")
    with pq.ParquetWriter(beside, tables.data.schema) as writer, tqdm(total=len(rows), desc=what, unit=" rows") as bar:
        for table in tables.iter(at_once):
            writer.write_table(table)
            bar.update(len(table))
    beside.replace(path)
