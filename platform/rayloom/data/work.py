"""Work on many pieces of data, wherever it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Workers(Protocol):
    """Does the same to many pieces, on one process or many; results come in the pieces' order."""

    def __call__(
        self, what: str, work: Callable[[Piece], Result], pieces: Sequence[Piece], sizes: Sequence[int]
    ) -> Iterator[Result]:
        """Start.

        Args:
            what: What is being done, for people.
            work: Done to each piece; can be pickled.
            pieces: Can be pickled.
            sizes: Bytes of each piece, to tell how far the work is.
        """


def this_process(
    what: str, work: Callable[[Piece], Result], pieces: Sequence[Piece], sizes: Sequence[int]
) -> Iterator[Result]:
    """`Workers` without helpers: one piece after the other, silently."""
    del what, sizes  # nobody is told
    return map(work, pieces)
