"""Sets of tokens as bits: token t is bit t % 32 of word t // 32, as token-mask libraries have it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]


def num_words(size: int) -> int:
    """Words of a mask over ``size`` tokens."""
    return (size + 31) // 32


def mask_of(tokens: Iterable[int], size: int) -> Mask:
    """The mask with just these tokens; those beyond ``size`` are left out."""
    ids = np.fromiter(tokens, dtype=np.int64)
    return mask_from_flags(np.bincount(ids[ids < size], minlength=size).astype(bool))


def with_tokens(mask: Mask, tokens: Iterable[int]) -> Mask:
    """A copy that allows these tokens, too."""
    ids, result = np.fromiter(tokens, dtype=np.int64), mask.copy()
    np.bitwise_or.at(result, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
    return result


def mask_from_flags(allowed: npt.NDArray[np.bool_]) -> Mask:
    """The mask of one flag per token."""
    packed = np.zeros(num_words(len(allowed)) * 4, dtype=np.uint8)
    bits = np.packbits(allowed, bitorder="little")
    packed[: len(bits)] = bits
    return packed.view("<u4").astype(np.uint32, copy=False)


def flags_of(mask: Mask, size: int) -> npt.NDArray[np.bool_]:
    """One flag per token."""
    return np.unpackbits(mask.astype("<u4", copy=False).view(np.uint8), count=size, bitorder="little").astype(bool)


def tokens_of(mask: Mask) -> list[int]:
    """The tokens of a mask, ascending."""
    found: list[int] = np.flatnonzero(flags_of(mask, 32 * len(mask))).tolist()
    return found


def intersect(masks: Sequence[Mask | None]) -> Mask | None:
    """What all masks allow; None where all allow everything. May be empty where constraints contradict."""
    given = [mask for mask in masks if mask is not None]
    if len(given) < 2:
        return given[0] if given else None
    common: Mask = np.bitwise_and.reduce(given)
    return common
