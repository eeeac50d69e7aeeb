"""Several rows in one sequence: which rows share a bin, so that little of a micro-batch is padding.

The plan decides which rows make a micro-batch; packing only lays those rows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """How the rows of a micro-batch are put into bins.

    Args:
        length: Tokens that a bin may hold; of an encoder-decoder, on either side. The longest row of the
            micro-batch where it is None or less than that row.
        flat: Put all rows into a single bin without padding, as flash attention wants them.
    """

    length: int | None = None
    flat: bool = False

    def bins(self, sizes_RK: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places of the rows that share a bin; every row is in exactly one.

        Args:
            sizes_RK: Tokens of each of R rows on each of K sides (1; encoder-decoders 2).
        """
        if self.flat:
            return [list(range(len(sizes_RK)))]
        filled = fill_bins(sizes_RK, [max(*side, self.length or 1, 1) for side in zip(*sizes_RK, strict=True)])
        # Few rows leave the last bin half empty; all bins are as wide as the fullest, so level ones may be narrower.
        levelled = level_bins(sizes_RK, len(filled))
        pairs = list(zip(_widths(sizes_RK, levelled), _widths(sizes_RK, filled), strict=True))
        return levelled if all(one <= other for one, other in pairs) else filled


def fill_bins(sizes_RK: Sequence[Sequence[int]], capacities_K: Sequence[int]) -> list[list[int]]:
    """First-fit decreasing (Johnson, 1973), on one or more sides at a time; deterministic.

    Args:
        sizes_RK: Tokens of each of R rows on each of K sides.
        capacities_K: Tokens of a bin on each side; no row is larger.

    Returns:
        Row numbers by bin, every one once, larger rows first.
    """
    bins: list[list[int]] = []
    rooms: list[list[int]] = []
    for row in _larger_first(sizes_RK, capacities_K):
        sizes = sizes_RK[row]
        fitting = (place for place, room in enumerate(rooms) if all(s <= r for s, r in zip(sizes, room, strict=True)))
        place = next(fitting, len(bins))
        if place == len(bins):
            bins.append([])
            rooms.append(list(capacities_K))
        bins[place].append(row)
        rooms[place] = [room - size for room, size in zip(rooms[place], sizes, strict=True)]
    return bins


def level_bins(sizes_RK: Sequence[Sequence[int]], num_bins: int) -> list[list[int]]:
    """Longest processing time first (Graham, 1969): each row into the emptiest bin; deterministic.

    Args:
        sizes_RK: Tokens of each of R rows on each of K sides; none is empty.
        num_bins: At most as many as rows.

    Returns:
        As `fill_bins`, without a limit to what a bin holds.
    """
    widest = [max(side) for side in zip(*sizes_RK, strict=True)]
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    fills = [0.0] * num_bins
    for row in _larger_first(sizes_RK, widest):
        place = fills.index(min(fills))
        bins[place].append(row)
        fills[place] += sum(size / most for size, most in zip(sizes_RK[row], widest, strict=True))
    return bins


def _larger_first(sizes_RK: Sequence[Sequence[int]], wholes_K: Sequence[int]) -> list[int]:
    """Rows by the larger of their shares of each side's whole."""
    shares = [max(size / whole for size, whole in zip(sizes, wholes_K, strict=True)) for sizes in sizes_RK]
    return sorted(range(len(shares)), key=lambda row: (-shares[row], row))


def _widths(sizes_RK: Sequence[Sequence[int]], bins: list[list[int]]) -> list[int]:
    """Tokens of the fullest bin on each side."""
    filled = [[sum(side) for side in zip(*(sizes_RK[row] for row in rows), strict=True)] for rows in bins]
    return [max(side) for side in zip(*filled, strict=True)]
