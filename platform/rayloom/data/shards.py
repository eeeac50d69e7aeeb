"""A split corpus to token ids, once: shard by shard, on as many processes as there are, the same whoever does it.

An interrupted run of this goes on from the shards that are whole. The manifest is written last.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from rayloom.artifacts import cache_root
from rayloom.data.blocks import Block, Reading, read_block
from rayloom.data.columns import Columns
from rayloom.data.dataset import EncodingReport
from rayloom.data.encoding import Dropped, Encoder
from rayloom.data.row_keys import SHARD_BLOCKS, shards_of
from rayloom.data.rows import Row, SourceRow
from rayloom.data.scanning import write_whole
from rayloom.data.shard_files import ENTRY, ExampleFiles, Format, NewShard, finished_shard, fits_small, sha256_of
from rayloom.data.sharded import MANIFEST, ShardedDataset
from rayloom.data.sides import LEFT_OUT, SPLITS
from rayloom.data.streaming import Corpus, Source
from rayloom.data.tokenization import tokenizer_fingerprint
from rayloom.data.tokenizing import encoded_row
from rayloom.data.work import Workers, this_process
from rayloom.errors import DataError

ENCODED = ("train", "validation")
"""Splits that training needs tokenised."""
_VERSION = 1
"""Goes up when the same rows are to give other ids, or the files another shape."""


@dataclass(frozen=True)
class _Piece:
    """Blocks that become one shard."""

    folder: Path
    blocks: tuple[Block, ...]
    first_row: int
    sides: npt.NDArray[np.uint8]


def encode_corpus(
    corpus: Corpus,
    encoder: Encoder,
    columns: Columns,
    *,
    cache_dir: Path | str | None,
    workers: Workers = this_process,
) -> dict[str, ShardedDataset]:
    """Tokenise the train and validation rows of a corpus, through the cache.

    Args:
        corpus: The rows.
        encoder: Tokenizer, template and limits.
        columns: The columns to read.
        cache_dir: Folder of the cache (``dataset.cache_dir``); seen by all workers.
        workers: Who tokenises.

    Returns:
        Examples by split, in the order of `rayloom.data.encode_rows`; every shard has been compared with its hash.

    Raises:
        DataError: A row that cannot be encoded, no row is left, or the folder is not seen from here.
    """
    digest = _digest(corpus, encoder, columns)
    folder = cache_root(cache_dir).absolute() / "corpora" / "tokens" / digest
    form = Format(
        small=fits_small(max(encoder.tokenizer.get_vocab().values())),
        seq2seq=encoder.template.seq2seq,
        plain=encoder.template.task == "language-modeling",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "lock"):
            pieces = _pieces(corpus, folder)
            told = _finished(pieces)
            missing = [place for place, each in enumerate(told) if each is None]
            if missing or not _has_manifest(folder):
                work = partial(_encode_piece, encoder=encoder, columns=columns, form=form, reading=corpus.reading)
                rest = [pieces[place] for place in missing]
                made = workers("tokenising", work, rest, [sum(block.size for block in piece.blocks) for piece in rest])
                known = dict(zip(missing, made, strict=True))
                whole = [known[place] if each is None else each for place, each in enumerate(told)]
                _write_manifest(folder, pieces, whole, corpus, form)
    except OSError as error:
        raise DataError(
            f"tokenised rows cannot be kept here ({error}); set dataset.cache_dir or RAYLOOM_CACHE", file=folder
        ) from error
    return {split: ShardedDataset(folder, split) for split in ENCODED}


def _digest(corpus: Corpus, encoder: Encoder, columns: Columns) -> str:
    head = {
        "version": [_VERSION, SHARD_BLOCKS],
        "rows": corpus.digest,
        "template": encoder.template.model_dump(),
        "limits": [encoder.max_input_length, encoder.max_target_length],
        "tokenizer": tokenizer_fingerprint(encoder.tokenizer),
        "columns": repr(columns),
    }
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def _pieces(corpus: Corpus, folder: Path) -> list[_Piece]:
    """All work there is; files that hold nothing but test rows are none of it."""
    sources: dict[str, Source] = {}
    for split in ENCODED:
        source = corpus.rows[split].source
        sources.setdefault(source.scan.file + source.sides_file.name, source)
    pieces: list[_Piece] = []
    for source in sources.values():
        at = 0
        for blocks in shards_of(source.scan.blocks):
            start, stop = source.starts[at].item(), source.starts[at + len(blocks)].item()
            place = folder / f"shard-{len(pieces):05d}"
            pieces.append(_Piece(place, blocks, start, source.sides(start, stop)))
            at += len(blocks)
    return pieces


def _finished(pieces: Sequence[_Piece]) -> list[dict[str, Any] | None]:
    """What is told of the shards that are whole; hashing runs beside Python, so threads are enough."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return list(threads.map(finished_shard, [piece.folder for piece in pieces]))


def _has_manifest(folder: Path) -> bool:
    """Whether there is a manifest, and the arrays that it speaks of are whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(sha256_of(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _encode_piece(
    piece: _Piece, *, encoder: Encoder, columns: Columns, form: Format, reading: Reading
) -> dict[str, Any]:
    """Make one shard, unless it is there."""
    told = finished_shard(piece.folder)
    if told is not None:
        return told
    with NewShard(piece.folder) as shard:
        counts = {split: Counter[str]() for split in ENCODED}
        with ExitStack() as opened:
            files = {split: opened.enter_context(ExampleFiles(shard.building, split, form)) for split in ENCODED}
            rows = (row for block in piece.blocks for row in read_block(block, reading))
            for place, (side, row) in enumerate(_paired(piece, rows), start=piece.first_row):
                split = SPLITS[side] if side != LEFT_OUT else None
                if split in files:
                    _encode_row(row, place, encoder, columns, files[split], counts[split])
            for each in files.values():
                each.flush()
        return shard.finish({"file": piece.blocks[0].file, "counts": {name: dict(c) for name, c in counts.items()}})


def _paired(piece: _Piece, rows: Iterable[Row]) -> Iterator[tuple[int, SourceRow]]:
    """Each row with its side.

    Raises:
        DataError: There are more or fewer rows than when sides were made.
    """
    for side, row in itertools.zip_longest(piece.sides.tolist(), rows):
        if side is None or row is None:
            raise DataError("the file has changed since it was first read; start again", file=piece.blocks[0].file)
        assert isinstance(row, SourceRow), "rows of a block know their places"
        yield side, row


def _encode_row(  # noqa: PLR0913 - where a row comes from, and where its examples go
    row: SourceRow, place: int, encoder: Encoder, columns: Columns, files: ExampleFiles, counter: Counter[str]
) -> None:
    examples, reason = encoded_row(row, encoder, columns, file_label=row.file, number=row.number)
    counter["num_rows"] += 1
    counter["num_examples"] += len(examples)
    counter["num_empty_inputs"] += reason is Dropped.EMPTY_INPUT
    counter["num_empty_targets"] += reason is Dropped.EMPTY_TARGET
    for example in examples:
        counter["num_truncated_inputs"] += example.input_truncated
        counter["num_truncated_targets"] += example.target_truncated
        files.add(example, row=place, number=row.number)


def _write_manifest(
    folder: Path, pieces: Sequence[_Piece], told: Sequence[dict[str, Any]], corpus: Corpus, form: Format
) -> None:
    """The splits' own files (lengths, targets, order), and last of all the manifest."""
    unseen = next((piece.folder for piece in pieces if not (piece.folder / "shard.json").exists()), None)
    if unseen is not None:
        raise DataError(
            "a worker on another machine wrote this shard, and it is not seen from here: set dataset.cache_dir to a "
            "folder that all machines share",
            file=unseen,
        )
    manifest: dict[str, Any] = {"format": form.dict(), "sources": [each["file"] for each in told], "splits": {}}
    for split in ENCODED:
        report = _report(told, split)
        if not report.num_examples:
            raise DataError(
                f"no row can be used: {'; '.join(report.warnings)}; see that the right columns are named "
                "(dataset.*_column) and filled in",
                file=told[0]["file"],
            )
        _write_index(folder, split, pieces, corpus)
        manifest["splits"][split] = _told_of(folder, split, told, form) | {"report": asdict(report)}
    manifest["files"] = {path.name: sha256_of(path) for path in sorted(folder.glob("*.npy"))}
    write_whole(folder / MANIFEST, json.dumps(manifest).encode())


def _told_of(folder: Path, split: str, told: Sequence[dict[str, Any]], form: Format) -> dict[str, Any]:
    """What a `ShardedDataset` has to know of its shards."""
    sizes = [[each["files"][f"{split}.{name}"][0] for name in ("ids", "labels", "entries")] for each in told]
    order = folder / f"{split}.order.npy"
    content = [form.dict(), sha256_of(order) if order.exists() else None]
    content += [each["files"][f"{split}.{name}"][1] for each in told for name in ("ids", "labels")]
    return {
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "examples": [each["counts"][split].get("num_examples", 0) for each in told],
        "sizes": sizes,
        "num_labels": sum(labels for _, labels, _ in sizes) // np.dtype(form.dtype).itemsize,
        "ordered": order.exists(),
    }


def _report(told: Sequence[dict[str, Any]], split: str) -> EncodingReport:
    total: Counter[str] = Counter()
    for each in told:
        total.update(each["counts"][split])
    return replace(EncodingReport(), **total)


def _write_index(folder: Path, split: str, pieces: Sequence[_Piece], corpus: Corpus) -> None:
    """Arrays over all examples of a split, in the order in which they are used."""
    entries = [_entries(piece.folder / f"{split}.entries") for piece in pieces]
    total = sum(map(len, entries))
    order = corpus.rows[split].order
    places = None if order is None else _example_order(entries, order)
    for name, field in (("lengths", "size"), ("targets", "targets")):
        values = np.empty(total, dtype=np.int32)
        np.concatenate([each[field] for each in entries], out=values, casting="unsafe")
        _save_array(folder / f"{split}.{name}.npy", values if places is None else values[places])
    if places is not None:
        _save_array(folder / f"{split}.order.npy", places)


def _save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Another run may have the old file mapped, so it is replaced and never written to."""
    beside = path.with_name(f".{path.name}")
    np.save(beside, array)
    beside.replace(path)


def _entries(path: Path) -> npt.NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, dtype=ENTRY)
    return np.memmap(path, dtype=ENTRY, mode="r")


def _example_order(entries: Sequence[npt.NDArray[Any]], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stored examples in the order of the rows that they were made of."""
    rows = np.concatenate([each["row"] for each in entries]).astype(np.int64)
    ranked = np.argsort(order)
    ranks = ranked[np.searchsorted(order[ranked], rows)]
    return np.argsort(ranks, kind="stable")
