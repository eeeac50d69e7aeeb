"""The rows of a run as token ids: in memory, or of a streamed corpus on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rayloom.config import DatasetConfig
from rayloom.data import Columns, Dataset, Encoder, Row, Splits, Workers, encode_corpus, encode_rows

_TOKENIZER_CHARACTERS = 32 << 20
"""Of a streamed corpus, so much text from its beginning trains the tokenizer of a random initialisation."""
_MANY_TOKENS = 2_000_000
"""Validation tokens that take a while to go through, again and again."""


def encoded_splits(
    dataset: DatasetConfig, splits: Splits, encoder: Encoder, columns: Columns, workers: Workers
) -> tuple[Dataset, Dataset]:
    """Train and validation rows as ids, through the cache.

    Raises:
        DataError: Of the first row that cannot be encoded.
    """
    if splits.corpus is not None:
        parts = encode_corpus(splits.corpus, encoder, columns, cache_dir=dataset.cache_dir, workers=workers)
        return parts["train"], parts["validation"]
    place = dataset.train_file or dataset.name
    train, validation = (
        encode_rows(rows, encoder, columns, cache_dir=dataset.cache_dir, file_label=f"{place}, {name} rows")
        for name, rows in (("train", splits.train), ("validation", splits.validation))
    )
    return train, validation


def tokenizer_rows(splits: Splits) -> Iterable[Row]:
    """Rows to train a tokenizer on: all train rows, or of a streamed corpus those at the beginning."""
    return splits.train if splits.corpus is None else _first(splits.corpus.rows["train"].in_file_order())


def slow_validation(splits: Splits, validation: Dataset) -> list[str]:
    """A word of warning where a share of a big corpus is gone through after every epoch."""
    if splits.corpus is None or validation.num_tokens <= _MANY_TOKENS:
        return []
    size = f"{validation.num_tokens} tokens of {len(splits.validation)} rows"
    return [f"each validation goes through {size}: dataset.max_validation_rows makes it shorter"]


def _first(rows: Iterable[Row]) -> Iterator[Row]:
    room = _TOKENIZER_CHARACTERS
    for row in rows:
        yield row
        room -= sum(len(value) for value in row.values() if isinstance(value, str))
        if room <= 0:
            return
