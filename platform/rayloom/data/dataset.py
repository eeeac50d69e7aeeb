"""Encoded rows in flat arrays: cheap to keep, to map from disk and to index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rayloom.data.rows import Row

IGNORED = -100
"""Label of positions that take no part in the loss (the one of ``torch.nn.CrossEntropyLoss``)."""

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Example:
    """One encoded row.

    Args:
        input_ids: Prompt (seq2seq), or prompt and target (causal).
        labels: Target with its end (seq2seq); as long as input_ids, -100 on the prompt (causal, unshifted).
        input_truncated: Context or input was cut.
        target_truncated: The target was cut.
    """

    input_ids: list[int]
    labels: list[int]
    input_truncated: bool = False
    target_truncated: bool = False


@dataclass(frozen=True)
class EncodingReport:
    """What encoding did to the rows, for the user to see.

    Args:
        num_rows: Rows given.
        num_examples: Examples made; language modelling cuts a row into several.
        num_empty_inputs: Rows dropped because their input is empty.
        num_empty_targets: Rows dropped because nothing of their target is left.
        num_truncated_inputs: Examples with a cut context or input.
        num_truncated_targets: Examples with a cut target.
    """

    num_rows: int = 0
    num_examples: int = 0
    num_empty_inputs: int = 0
    num_empty_targets: int = 0
    num_truncated_inputs: int = 0
    num_truncated_targets: int = 0

    @property
    def num_dropped(self) -> int:
        """Rows that gave no example."""
        return self.num_empty_inputs + self.num_empty_targets

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence per thing worth knowing; empty when every row went in whole."""
        counted = (
            (self.num_empty_inputs, f"of {self.num_rows} rows dropped: empty input"),
            (self.num_empty_targets, f"of {self.num_rows} rows dropped: nothing of the target is left"),
            (self.num_truncated_inputs, "prompts cut to max_input_length"),
            (self.num_truncated_targets, "targets cut to the length limits"),
        )
        return tuple(f"{count} {what}" for count, what in counted if count)


class Dataset(Protocol):
    """Examples, wherever they lie: in memory (`EncodedDataset`), or on disk (`rayloom.data.ShardedDataset`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def seq2seq(self) -> bool:
        """Labels are a sequence of their own."""

    @property
    def digest(self) -> str:
        """Hash of the content."""

    @property
    def report(self) -> EncodingReport:
        """What encoding did."""

    @property
    def lengths(self) -> Ints:
        """Input ids of each example (encoder length, or the whole causal sequence)."""

    @property
    def target_counts(self) -> Ints:
        """Positions of each example that add to the loss (causal: after the shift by one)."""

    @property
    def num_tokens(self) -> int:
        """Input ids in all, plus the targets' where they are a sequence of their own."""

    def first_ids(self, count: int) -> Ints:
        """At most so many of the input ids, from the first example on."""

    def place(self, index: int) -> str:
        """Names an example for people: where its row was read."""


@dataclass(frozen=True)
class Origins:
    """Where rows were read, kept small: a number and a file's index per row.

    Args:
        files: Names of files or datasets.
        file_of: Index into files, by row.
        numbers: Row in its file, from 1, by row.
    """

    files: tuple[str, ...]
    file_of: Ints
    numbers: Ints

    @classmethod
    def of(cls, rows: Sequence[Row], file_label: str) -> Origins:
        """The origins of rows; of those that do not know theirs, their places in this sequence."""
        files: dict[str, int] = {}
        places = [
            (getattr(row, "file", "") or file_label, getattr(row, "number", 0) or number)
            for number, row in enumerate(rows, start=1)
        ]
        file_of = np.array([files.setdefault(file, len(files)) for file, _ in places], dtype=np.int32)
        return cls(tuple(files), file_of, np.array([number for _, number in places], dtype=np.int64))

    def name(self, row: int) -> str:
        """Such as ``train.jsonl row 17``."""
        return f"{self.files[int(self.file_of[row])]} row {int(self.numbers[row])}"


@dataclass(frozen=True)
class EncodedDataset:
    """Examples in flat storage. ``offsets`` have one entry more than there are examples.

    Args:
        input_ids: All input ids, one example after the other.
        input_offsets: Where each example starts in input_ids.
        labels: All labels.
        label_offsets: Where each example starts in labels.
        truncated: Shape (examples, 2): input cut, target cut.
        seq2seq: Labels are a sequence of their own.
        digest: Hash of all that decides the content.
        report: What encoding did.
        row_of: Row that each example was made of; empty where not known.
        origins: Where those rows were read.
    """

    input_ids: Ints
    input_offsets: Ints
    labels: Ints
    label_offsets: Ints
    truncated: npt.NDArray[np.bool_]
    seq2seq: bool
    digest: str
    report: EncodingReport = field(default_factory=EncodingReport)
    row_of: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    origins: Origins | None = None

    def __len__(self) -> int:
        return len(self.input_offsets) - 1

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        inputs = self.input_ids[self.input_offsets[index] : self.input_offsets[index + 1]]
        labels = self.labels[self.label_offsets[index] : self.label_offsets[index + 1]]
        cut = self.truncated[index]
        return Example(inputs.tolist(), labels.tolist(), bool(cut[0]), bool(cut[1]))

    def place(self, index: int) -> str:
        """Names an example for people: where its row was read, if that is known."""
        if self.origins is None or not len(self.row_of):
            return f"row {index} after encoding"
        return self.origins.name(int(self.row_of[index]))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Input ids of each example (encoder length, or the whole causal sequence)."""
        return np.diff(self.input_offsets).astype(np.int64)

    @property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Positions of each example that add to the loss (causal: after the shift by one)."""
        counted = np.asarray(self.labels != IGNORED, dtype=np.int64)
        if not self.seq2seq:
            counted[self.label_offsets[:-1]] = 0
        sums = np.concatenate(([0], np.cumsum(counted, dtype=np.int64)))
        counts: npt.NDArray[np.int64] = sums[self.label_offsets[1:]] - sums[self.label_offsets[:-1]]
        return counts

    @property
    def num_tokens(self) -> int:
        """Input ids in all, plus the targets' where they are a sequence of their own."""
        return len(self.input_ids) + (len(self.labels) if self.seq2seq else 0)

    def first_ids(self, count: int) -> Ints:
        """At most so many of the input ids, from the first example on."""
        return self.input_ids[:count]

    @classmethod
    def from_examples(
        cls,
        examples: list[Example],
        *,
        seq2seq: bool,
        digest: str = "",
        report: EncodingReport | None = None,
        row_of: Sequence[int] = (),
    ) -> EncodedDataset:
        """Put examples into flat storage."""
        return cls(
            input_ids=_flat([example.input_ids for example in examples]),
            input_offsets=_offsets([len(example.input_ids) for example in examples]),
            labels=_flat([example.labels for example in examples]),
            label_offsets=_offsets([len(example.labels) for example in examples]),
            truncated=np.array(
                [(example.input_truncated, example.target_truncated) for example in examples], dtype=np.bool_
            ).reshape(-1, 2),
            seq2seq=seq2seq,
            digest=digest,
            report=report or EncodingReport(num_rows=len(examples), num_examples=len(examples)),
            row_of=np.asarray(row_of, dtype=np.int64),
        )

    def report_dict(self) -> dict[str, int]:
        """The report for JSON."""
        return asdict(self.report)


def _flat(parts: list[list[int]]) -> Ints:
    arrays = [np.asarray(part, dtype=np.int32) for part in parts]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)


def _offsets(lengths: list[int]) -> Ints:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)
