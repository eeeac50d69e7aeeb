"""Rows to train, validation and test: seeded, and no input on two sides."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayloom.config import DatasetConfig
from rayloom.data.columns import Columns
from rayloom.data.corpus_splits import split_corpus
from rayloom.data.hub import load_dataset_rows, own_splits
from rayloom.data.rows import Row, SourceRow
from rayloom.data.sides import SPLITS
from rayloom.data.sources import read_rows
from rayloom.data.streaming import Corpus, files_of, way_of
from rayloom.data.work import Workers, this_process
from rayloom.errors import DataError

_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"\s+"))


@dataclass(frozen=True)
class Splits:
    """The rows of a run.

    Args:
        train: Rows to learn from.
        validation: Rows to choose by.
        test: Rows to report on.
        digest: SHA-256 of the content of all three.
        warnings: Things the user should see, such as inputs that explicit files have in common.
        how: How the rows are read, for people.
        corpus: Where the rows stay in their files and are read from there on request; None where they are in memory.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    digest: str
    warnings: tuple[str, ...] = ()
    how: str = ""
    corpus: Corpus | None = None

    def rows(self, split: str) -> Sequence[Row]:
        """The rows of a split by its name."""
        found: Sequence[Row] = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return found


def load_splits(dataset: DatasetConfig, columns: Columns, *, workers: Workers = this_process) -> Splits:
    """Read, check, split and limit the rows of a run: in memory, or (`way_of`) where they lie.

    Splits that no file and no dataset gives are split off the train rows. Rows with the same normalised input
    and context stay together. A language modelling text of one or two documents is cut by position instead.

    Args:
        dataset: Names the rows.
        columns: What is read of them.
        workers: Who reads files that are streamed.

    Raises:
        DataError: Names file, row and column; or there are too few rows to split.
        HubError: The dataset has to come from the hub, which is out of reach.
    """
    way = way_of(dataset)
    if way.streamed:
        corpus = split_corpus(dataset, columns, workers)
        return Splits(**corpus.rows, digest=corpus.digest, warnings=corpus.warnings, how=way.reason, corpus=corpus)
    given = _given(dataset)
    for rows in given.values():
        columns.check(rows)
    missing = [split for split in ("test", "validation") if split not in given]
    warnings = _overlaps(given, columns)
    if missing:
        shares = {"validation": dataset.validation_fraction, "test": dataset.test_fraction}
        parts = _split_off(given["train"], columns, {split: shares[split] for split in missing}, dataset.split_seed)
        given |= parts
    limits = (dataset.max_train_rows, dataset.max_validation_rows, dataset.max_test_rows)
    limited = [
        _first_shuffled(given[split], limit, [dataset.split_seed, place])
        for place, (split, limit) in enumerate(zip(SPLITS, limits, strict=True))
    ]
    train, validation, test = limited
    return Splits(train, validation, test, digest=rows_digest(*limited), warnings=warnings, how=way.reason)


def rows_digest(*splits: Sequence[Row]) -> str:
    """SHA-256 of rows, in order."""
    digest = hashlib.sha256()
    for rows in splits:
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        digest.update(b"\x1d")
    return digest.hexdigest()


def _given(dataset: DatasetConfig) -> dict[str, list[Row]]:
    """The splits that the config or the dataset names itself."""
    if dataset.name:
        return own_splits(load_dataset_rows(dataset.name, dataset.subset), dataset.name)
    return {
        split: read_rows(path, text_column=dataset.text_column, text_unit=dataset.text_unit)
        for split, path in files_of(dataset).items()
    }


def _overlaps(given: dict[str, list[Row]], columns: Columns) -> tuple[str, ...]:
    """Inputs that explicit files share: counted and told, not removed."""
    keys = {split: [columns.key(row) for row in rows] for split, rows in given.items()} if len(given) > 1 else {}
    warnings = []
    for place, first in enumerate(SPLITS):
        for second in SPLITS[place + 1 :]:
            known = set(keys.get(first, ()))
            count = sum(key in known for key in keys.get(second, ()))
            if count:
                total = len(keys[second])
                warnings.append(f"{count} of {total} {second} rows have an input that is in {first} as well")
    return tuple(warnings)


def _split_off(rows: list[Row], columns: Columns, shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    """Part train rows into train and the splits that are missing."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[columns.key(row)].append(place)
    if columns.task == "language-modeling" and len(groups) <= len(shares):
        distinct = [rows[places[0]] for places in groups.values()]
        return _cut_by_position(distinct, columns, shares)
    if len(groups) <= len(shares):
        raise DataError(
            f"{len(rows)} rows with {len(groups)} different inputs cannot be split into train, "
            f"{' and '.join(shares)}; add rows or name the files",
            file=_file_of(rows),
        )
    sides: dict[str, list[int]] = {split: [] for split in ("train", *shares)}
    room = {split: max(1, round(len(rows) * share)) for split, share in shares.items()}
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    # Larger groups first would be unfair; groups that do not fit a small side go to train.
    for key in order:
        places = groups[key]
        side = next((split for split in shares if room[split] >= len(places)), "train")
        sides[side] += places
        if side != "train":
            room[side] -= len(places)
    empty = [split for split, places in sides.items() if not places]
    if empty:
        raise DataError(
            f"no rows are left for {' and '.join(empty)}: too many rows share one input; name the files",
            file=_file_of(rows),
        )
    return {split: [rows[place] for place in sorted(places)] for split, places in sides.items()}


def _cut_by_position(rows: list[Row], columns: Columns, shares: dict[str, float]) -> dict[str, list[Row]]:
    """Part each document at breaks in its text: train first, then validation, then test."""
    names = [split for split in SPLITS if split == "train" or split in shares]
    edges = np.cumsum([1.0 - sum(shares.values()), *(shares[name] for name in names[1:-1])])
    sides: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        text = columns.input_text(row)
        cuts = _cut_points(text, [float(edge) for edge in edges])
        if cuts is None:
            raise DataError(
                f"the text is too short to split into {', '.join(names)}; add text or name the files",
                file=_file_of([row]),
                column=columns.text,
            )
        bounds = [0, *cuts, len(text)]
        for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):
            part = {**row, columns.text: text[start:end]}
            number = row.number if isinstance(row, SourceRow) else 0
            sides[name].append(SourceRow(part, _file_of([row]) or "", number))
    return sides


def _cut_points(text: str, edges: list[float]) -> list[int] | None:
    """Characters to cut at, near the edges: between paragraphs, else lines, else words."""
    for pattern in _BREAKS:
        breaks = [found.end() for found in pattern.finditer(text)]
        if not breaks:
            continue
        cuts = [min(breaks, key=lambda place, edge=edge: abs(place - edge * len(text))) for edge in edges]  # type: ignore[misc]
        bounds = [0, *cuts, len(text)]
        whole = all(text[a:b].strip() for a, b in zip(bounds[:-1], bounds[1:], strict=True))
        near = all(abs(cut - edge * len(text)) <= 0.05 * len(text) for cut, edge in zip(cuts, edges, strict=True))
        if whole and (near or pattern is _BREAKS[-1]):
            return cuts
    return None


def _first_shuffled(rows: list[Row], limit: int | None, seed: list[int]) -> list[Row]:
    if limit is None or limit >= len(rows):
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return [rows[place] for place in order]


def _file_of(rows: Sequence[Row]) -> str | None:
    return rows[0].file if rows and isinstance(rows[0], SourceRow) else None
