"""Who takes which row of a big corpus: the split of `load_splits`, made from keys on disk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rayloom.data.row_keys import PART_ROWS, RowKeys, parts
from rayloom.errors import DataError

SPLITS = ("train", "validation", "test")
LEFT_OUT = 255
"""Side of rows beyond a limit."""

Sides = npt.NDArray[np.uint8]
"""Place in SPLITS of each row, or LEFT_OUT."""


def split_off(
    keys: RowKeys, shares: Mapping[str, float], sides: Sides, *, file: str, part_rows: int = PART_ROWS
) -> None:
    """Part train rows into train and the splits that are missing, as `load_splits` does.

    Args:
        keys: Of the train rows.
        shares: Fraction of the rows for each missing split, in the order in which they are filled.
        sides: One per row, all "train"; written to.
        file: Names the rows in errors.
        part_rows: About how many keys are held in memory.

    Raises:
        DataError: Too few different inputs, or too many rows with the same one.
    """
    few = distinct_up_to(keys, len(shares) + 1, part_rows=part_rows)
    if few <= len(shares):
        raise DataError(
            f"{keys.num_rows} rows with {few} different inputs cannot be split into train, {' and '.join(shares)}: "
            "name the files, set dataset.text_unit (paragraph or line) for plain text, or dataset.streaming: false",
            file=file,
        )
    room = {split: max(1, round(keys.num_rows * share)) for split, share in shares.items()}
    wanted = dict(room)
    for low, high in parts(keys.num_rows, part_rows=part_rows):
        _fill(*keys.between(low, high), room, sides)
        if not any(room.values()):
            break
    taken = {split: wanted[split] - room[split] for split in shares}
    taken["train"] = keys.num_rows - sum(taken.values())
    empty = [split for split in ("train", *shares) if not taken[split]]
    if empty:
        raise DataError(
            f"no rows are left for {' and '.join(empty)}: too many rows share one input; name the files", file=file
        )


def _fill(keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64], room: dict[str, int], sides: Sides) -> None:
    """Give groups of equal keys, rising, to the first split with room for all of their rows."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else order
    bounds = [*starts.tolist(), len(keys)]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        split = next((name for name, left in room.items() if left >= stop - start), None)
        if split is not None:
            sides[rows[start:stop]] = SPLITS.index(split)
            room[split] -= stop - start
            if not any(room.values()):
                return


def distinct_up_to(keys: RowKeys, limit: int, *, part_rows: int = PART_ROWS) -> int:
    """How many different keys there are; counting stops at the limit."""
    count = 0
    for low, high in parts(keys.num_rows, part_rows=part_rows):
        count += len(np.unique(keys.between(low, high)[0]))
        if count >= limit:
            return limit
    return count


def limit_rows(sides: Sides, split: str, limit: int | None, seed: int) -> npt.NDArray[np.int64] | None:
    """Leave out the rows of a split beyond its limit, as `load_splits` does.

    Holds eight bytes per row of the split for a moment, if there is a limit.

    Args:
        sides: Of the rows of the split's source; written to.
        split: Its name.
        limit: Rows to keep; all where None.
        seed: Of the split.

    Returns:
        The rows kept, in the order in which they are used; None for all in their own order.
    """
    if limit is None:
        return None
    code = SPLITS.index(split)
    rows = np.flatnonzero(sides == code)
    if limit >= len(rows):
        return None
    chosen: npt.NDArray[np.int64] = rows[np.random.default_rng([seed, code]).permutation(len(rows))[:limit]]
    sides[rows] = LEFT_OUT
    sides[chosen] = code
    return chosen


def shared_inputs(first: RowKeys, second: RowKeys, *, part_rows: int = PART_ROWS) -> int:
    """How many rows of the second have an input that the first has as well."""
    count = 0
    for low, high in parts(first.num_rows + second.num_rows, part_rows=part_rows):
        known, asked = first.between(low, high)[0], second.between(low, high)[0]
        count += int(np.isin(asked, known).sum())
    return count
