"""Encode all rows once; the result is cached by the hash of everything that decides it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np

from rayloom.artifacts import cache_root
from rayloom.data.columns import Columns
from rayloom.data.dataset import EncodedDataset, EncodingReport, Example, Origins
from rayloom.data.encoding import Dropped, Encoder
from rayloom.data.rows import Row, row_error
from rayloom.data.tokenization import tokenizer_fingerprint
from rayloom.errors import DataError, RequestError

_VERSION = 2
"""Goes up when the same rows are to give other ids, or the files another shape."""
_ARRAYS = ("input_ids", "input_offsets", "labels", "label_offsets", "truncated", "row_of")


def encode_rows(
    rows: Sequence[Row],
    encoder: Encoder,
    columns: Columns,
    *,
    cache_dir: Path | str | None,
    file_label: str,
) -> EncodedDataset:
    """Rows to examples, through the cache.

    Args:
        rows: Rows of one split.
        encoder: Tokenizer, template and limits.
        columns: The columns to read.
        cache_dir: Folder of the cache (``dataset.cache_dir``); see `rayloom.artifacts.cache_root` for None.
        file_label: Names the rows in errors where they do not name their file themselves.

    Returns:
        The examples, mapped from disk. Its ``report`` counts what was cut or dropped: show its warnings.

    Raises:
        DataError: A row that cannot be encoded (with file, row and column), or no row is left.
    """
    if not rows:
        raise DataError("there are no rows", file=file_label)
    digest = _digest(rows, encoder, columns)
    folder = cache_root(cache_dir) / "tokenized" / digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            cached = _load(folder, digest, encoder)
            if cached is None:
                _save(_encode(rows, encoder, columns, file_label, digest), folder)
                cached = _load(folder, digest, encoder)
    except OSError as error:
        raise DataError(
            f"tokenised rows cannot be kept here ({error}); set dataset.cache_dir or RAYLOOM_CACHE",
            file=folder,
        ) from error
    assert cached is not None, "what was just saved can be loaded"
    return replace(cached, origins=Origins.of(rows, file_label))


def _digest(rows: Sequence[Row], encoder: Encoder, columns: Columns) -> str:
    head = {
        "version": _VERSION,
        "template": encoder.template.model_dump(),
        "limits": [encoder.max_input_length, encoder.max_target_length],
        "tokenizer": tokenizer_fingerprint(encoder.tokenizer),
        "columns": repr(columns),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _encode(rows: Sequence[Row], encoder: Encoder, columns: Columns, file_label: str, digest: str) -> EncodedDataset:
    examples: list[Example] = []
    row_of: list[int] = []
    dropped: Counter[Dropped] = Counter()
    for number, row in enumerate(rows, start=1):
        made, reason = encoded_row(row, encoder, columns, file_label=file_label, number=number)
        examples += made
        row_of += [number - 1] * len(made)
        if reason:
            dropped[reason] += 1
    report = EncodingReport(
        num_rows=len(rows),
        num_examples=len(examples),
        num_empty_inputs=dropped[Dropped.EMPTY_INPUT],
        num_empty_targets=dropped[Dropped.EMPTY_TARGET],
        num_truncated_inputs=sum(example.input_truncated for example in examples),
        num_truncated_targets=sum(example.target_truncated for example in examples),
    )
    if not examples:
        raise DataError(
            f"no row can be used: {'; '.join(report.warnings)}; see that the right columns are named "
            "(dataset.*_column) and filled in",
            file=file_label,
        )
    return EncodedDataset.from_examples(
        examples, seq2seq=encoder.template.seq2seq, digest=digest, report=report, row_of=row_of
    )


def encoded_row(
    row: Row, encoder: Encoder, columns: Columns, *, file_label: str, number: int
) -> tuple[list[Example], Dropped | None]:
    """The examples of a row, or why there are none.

    Args:
        row: The row.
        encoder: Tokenizer, template and limits.
        columns: The columns to read.
        file_label: File for rows that do not name theirs.
        number: Row number for rows that bring none.

    Raises:
        DataError: The row cannot be encoded; names its place.
    """
    try:
        return encoder.examples(row, columns)
    except (DataError, RequestError) as error:
        if isinstance(error, DataError) and error.row:
            raise
        raise row_error(str(error), row, file=file_label, number=number) from error


def _save(dataset: EncodedDataset, folder: Path) -> None:
    """Write beside, then rename: a folder that exists is whole."""
    if folder.exists():
        shutil.rmtree(folder)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        for name in _ARRAYS:
            np.save(building / f"{name}.npy", getattr(dataset, name))
        (building / "report.json").write_text(json.dumps(dataset.report_dict()), encoding="utf-8")
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _load(folder: Path, digest: str, encoder: Encoder) -> EncodedDataset | None:
    """The cached examples; None where there are none, or damaged ones (they are made again)."""
    try:
        report = EncodingReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, EOFError):
        return None
    return EncodedDataset(**arrays, seq2seq=encoder.template.seq2seq, digest=digest, report=report)
