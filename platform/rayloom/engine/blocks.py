"""Who holds which block of the key/value cache, and which blocks hold a head that others may share.

The tensors are `cache.PagedCache`'s; here are integers only. Blocks are counted by reference, as in PagedAttention
(Kwon et al. 2023, arXiv:2309.06180). Heads are found in a tree of full blocks, as in RadixAttention (Zheng et al. 2024,
arXiv:2312.07104): an entry's key is its parent's number, which is never given twice, and its own tokens. Two heads are
therefore taken for equal only if all of their tokens are; hashes merely find the place in a dict.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BLOCK = 16
"""Tokens of a block: one AVX-512 register of float32 scores."""


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK)


@dataclass(eq=False, slots=True)
class _Entry:
    """Cached content: one full block of a causal sequence, or all blocks of one encoder prompt."""

    number: int
    key: tuple[int, tuple[int, ...]]
    blocks: tuple[int, ...]


class BlockPool:
    """Counts references to blocks, and keeps the content of unreferenced ones until their room is needed.

    A block is *used* (referenced), *idle* (unreferenced, its content registered: it can be shared again), or *unused*.
    Idle blocks are evicted least recently used first. A sequence frees its blocks from the last to the first
    (`free_all`), and whoever holds a registered block holds its parents too, so leaves always go before their parents.

    Args:
        num_blocks: Size of the pool.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._refcounts = [0] * num_blocks
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._entry_of: list[_Entry | None] = [None] * num_blocks
        self._entries: dict[tuple[int, tuple[int, ...]], _Entry] = {}
        self._roots: dict[tuple[str | None, bool], int] = {}
        self._numbers = itertools.count()

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can still give: unused and idle ones."""
        return len(self._unused) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Blocks that nobody holds, whose content can be shared again."""
        return len(self._idle)

    def refcount(self, block: int) -> int:
        """Holders of this block."""
        return self._refcounts[block]

    def allocate(self) -> int:
        """A block of one's own, with no content. The caller has seen to it that `num_free` is not 0."""
        if not self._unused:
            assert self._idle, "the pool is empty"
            self._drop_oldest()
        block = self._unused.pop()
        self._refcounts[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a used or idle block."""
        self.share_all((block,))

    def share_all(self, blocks: Sequence[int]) -> None:
        """One more holder of each."""
        counts = self._refcounts
        for block in blocks:
            if counts[block] == 0:
                del self._idle[block]
            counts[block] += 1

    def free(self, block: int) -> None:
        """One holder less. Without holders the block is idle if its content is registered, else unused."""
        count = self._refcounts[block] - 1
        assert count >= 0, f"block {block} is freed twice"
        self._refcounts[block] = count
        if count == 0:
            if self._entry_of[block] is None:
                self._unused.append(block)
            else:
                self._idle[block] = None

    def free_all(self, blocks: Sequence[int]) -> None:
        """Free a sequence's blocks, the last first, so that tails are evicted before the heads they build on."""
        for block in reversed(blocks):
            self.free(block)

    def following(self, parent: int | None, tokens: Sequence[int], adapter: str | None) -> int | None:
        """The block that holds these tokens after what `parent` and its own parents hold.

        Args:
            parent: A registered block; None for a sequence's first block.
            tokens: BLOCK token ids.
            adapter: Adapter that computed them.
        """
        entry = self._entries.get((self._number_of(parent, adapter), tuple(tokens)))
        return None if entry is None else entry.blocks[0]

    def match(self, tokens: Sequence[int], adapter: str | None) -> list[int]:
        """Share the blocks of the longest cached head.

        Never of all tokens: one at least remains to be computed, so that there are logits.

        Returns:
            Blocks in order; each has one more holder now.
        """
        blocks: list[int] = []
        parent: int | None = None
        for start in range(0, len(tokens) - BLOCK, BLOCK):
            block = self.following(parent, tokens[start : start + BLOCK], adapter)
            if block is None:
                break
            self.share(block)
            blocks.append(block)
            parent = block
        return blocks

    def register(self, block: int, parent: int | None, tokens: Sequence[int], adapter: str | None) -> int:
        """Offer a full, computed block for sharing.

        Args:
            block: A block that the caller holds.
            parent: The block before it, None for the first.
            tokens: Its BLOCK token ids.
            adapter: Adapter that computed it.

        Returns:
            The block to go on with. If another one has this content already, the caller now holds that one instead,
            so that equal heads computed at the same time end up in memory once.
        """
        return self._register((self._number_of(parent, adapter), tuple(tokens)), (block,))[0]

    def match_prompt(self, ids: tuple[int, ...], adapter: str | None) -> list[int]:
        """Share the cross-attention blocks of an equal encoder prompt; empty if there are none."""
        entry = self._entries.get((self._root(adapter, cross=True), ids))
        if entry is None:
            return []
        self.share_all(entry.blocks)
        return list(entry.blocks)

    def register_prompt(self, blocks: Sequence[int], ids: tuple[int, ...], adapter: str | None) -> list[int]:
        """Offer an encoder prompt's cross-attention blocks for sharing. Returns as `register` does."""
        return list(self._register((self._root(adapter, cross=True), ids), tuple(blocks)))

    def forget(self, adapter: str | None) -> None:
        """Never again match what this adapter computed: its weights have changed. Blocks in use stay in use."""
        for cross in (False, True):
            self._roots.pop((adapter, cross), None)

    def check(self, references: Mapping[int, int]) -> None:
        """Assert that the books are right.

        Args:
            references: How many holders each block really has; blocks without any may be left out.
        """
        used = {block for block, count in enumerate(self._refcounts) if count}
        assert {block: self._refcounts[block] for block in used} == {b: n for b, n in references.items() if n}
        unused = set(self._unused)
        assert len(unused) == len(self._unused)
        assert len(used) + len(unused) + len(self._idle) == self.num_blocks
        assert used | unused | set(self._idle) == set(range(self.num_blocks))
        for block, entry in enumerate(self._entry_of):
            assert entry is None or (self._entries[entry.key] is entry and block in entry.blocks)
            assert (entry is not None) or block not in self._idle
            assert (entry is None) or block not in unused
        assert all(self._entry_of[block] is entry for entry in self._entries.values() for block in entry.blocks)

    def _number_of(self, parent: int | None, adapter: str | None) -> int:
        if parent is None:
            return self._root(adapter, cross=False)
        entry = self._entry_of[parent]
        assert entry is not None, "a block is registered after its parent"
        return entry.number

    def _root(self, adapter: str | None, *, cross: bool) -> int:
        root = self._roots.get((adapter, cross))
        if root is None:
            root = self._roots[adapter, cross] = next(self._numbers)
        return root

    def _register(self, key: tuple[int, tuple[int, ...]], blocks: tuple[int, ...]) -> tuple[int, ...]:
        known = self._entries.get(key)
        if known is None:
            known = self._entries[key] = _Entry(next(self._numbers), key, blocks)
            for block in blocks:
                self._entry_of[block] = known
        elif known.blocks != blocks:
            self.share_all(known.blocks)
            self.free_all(blocks)
        return known.blocks

    def _drop_oldest(self) -> None:
        """Make the least recently used content's blocks unused. A prompt's blocks have equal holders: all are idle."""
        entry = self._entry_of[next(iter(self._idle))]
        assert entry is not None
        del self._entries[entry.key]
        for block in entry.blocks:
            del self._idle[block]
            self._entry_of[block] = None
            self._unused.append(block)
