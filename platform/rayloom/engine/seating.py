"""Slots and cache blocks of running groups: seating them, growing, forking, and taking it all back.

Who is seated when is `scheduler`'s business; how the cache's blocks are found and counted is `blocks`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from rayloom.engine.blocks import BLOCK, BlockPool, blocks_for
from rayloom.engine.fairness import Account
from rayloom.engine.plan import Limits
from rayloom.engine.request import Group, Sequence, Status


@dataclass(eq=False, slots=True)
class Ticket:
    """A live group's place in the house.

    Attributes:
        account: Its owner's.
        width: Slots that the group has while it runs.
        spare: Those of them that no sequence uses now.
    """

    group: Group
    account: Account
    width: int
    spare: list[int] = field(default_factory=list)


class Seating:
    """Books of slots and blocks.

    Attributes:
        pool: The blocks.
        num_seated_tokens: Tokens, encoder's included, of groups when they were seated.
        num_matched_tokens: Those of them that nobody had to compute because the cache had them.
    """

    def __init__(self, limits: Limits, *, prefix_cache: bool) -> None:
        self.pool = BlockPool(limits.num_blocks)
        self.num_seated_tokens = self.num_matched_tokens = 0
        self._prefix_cache = prefix_cache
        self._max_slots = limits.max_sequences
        self._slots = list(range(limits.max_sequences - 1, -1, -1))
        self._refused = (-1, 0)  # the group that did not fit when last tried, and the free blocks that it wants

    @property
    def num_free_slots(self) -> int:
        """Slots that no running group has."""
        return len(self._slots)

    def seat(self, ticket: Ticket) -> bool:
        """Give a waiting group its slots, and blocks for all tokens that it has so far, if they are there.

        One block per used slot is left over, so that nobody is seated only to be preempted at once.
        """
        group, pool, num_free = ticket.group, self.pool, self.pool.num_free
        reserve = self._max_slots - len(self._slots)
        if ticket.width > len(self._slots):
            return False
        if self._refused[0] == group.group_id and reserve and self._refused[1] + reserve > num_free:
            return False  # as before; matching a long prompt anew in every step would cost more than it may bring
        self._match(group)
        wanted = [blocks_for(len(sequence.tokens)) - len(sequence.blocks) for sequence in group.sequences]
        num_cross = blocks_for(len(group.request.encoder_ids)) - len(group.cross_blocks)
        num_wanted = sum(wanted) + num_cross
        if num_wanted + reserve > pool.num_free:
            self._refused = (group.group_id, num_wanted + num_free - pool.num_free)
            self._take_blocks(group)
            return False
        self._refused = (-1, 0)
        group.cross_blocks += [pool.allocate() for _ in range(num_cross)]
        ticket.spare = [self._slots.pop() for _ in range(ticket.width)]
        for sequence, num_blocks in zip(group.sequences, wanted, strict=True):
            sequence.blocks += [pool.allocate() for _ in range(num_blocks)]
            sequence.slot = ticket.spare.pop()
            self.num_seated_tokens += len(sequence.tokens)
            self.num_matched_tokens += sequence.num_computed
        self.num_seated_tokens += len(group.request.encoder_ids)
        self.num_matched_tokens += len(group.request.encoder_ids) * group.encoded
        return True

    def most_blocks(self, ticket: Ticket) -> int:
        """Free blocks with which a waiting group is seated for sure, given slots."""
        group = ticket.group
        own = sum(blocks_for(len(sequence.tokens)) for sequence in group.sequences)
        return own + blocks_for(len(group.request.encoder_ids)) + self._max_slots

    def vacate(self, ticket: Ticket) -> None:
        """Take a seated group's slots and blocks. Its sequences keep their tokens."""
        self._slots += ticket.spare
        ticket.spare = []
        for sequence in ticket.group.sequences:
            self._slots.append(sequence.slot)
            sequence.slot = -1
        self._take_blocks(ticket.group)

    def fork(self, ticket: Ticket, parents: Seq[int]) -> list[tuple[int, int]]:
        """See `Scheduler.fork`."""
        group, old = ticket.group, ticket.group.sequences
        assert 0 < len(parents) <= ticket.width, "there is no room for a fork"
        untaken = set(parents)
        for place, sequence in enumerate(old):
            if place not in untaken:
                self.pool.free_all(sequence.blocks)
                ticket.spare.append(sequence.slot)
                sequence.blocks, sequence.slot = [], -1
        is_beam = group.request.params.is_beam
        renumber = is_beam or len(parents) > len(old)
        children: list[Sequence] = []
        copies: list[tuple[int, int]] = []
        for place, parent in enumerate(parents):
            source = old[parent]
            slot = source.slot
            if parent in untaken:
                untaken.remove(parent)
            else:
                slot = ticket.spare.pop()
                copies.append((slot, source.slot))
                self.pool.share_all(source.blocks)
            children.append(_child(source, place if renumber else source.index, slot))
        group.sequences = children
        if not is_beam and len(parents) < len(old):
            ticket.width = len(parents)
            self._slots += ticket.spare
            ticket.spare = []
        return copies

    def num_missing(self, sequences: Seq[Sequence]) -> int:
        """Blocks to allocate so that each sequence can write one token: new ones, and copies of shared ones."""
        missing, refcount = 0, self.pool.refcount
        writers: dict[int, int] = {}
        for sequence in sequences:
            blocks, place = sequence.blocks, sequence.num_computed // BLOCK
            if place == len(blocks):
                missing += 1
            elif refcount(blocks[place]) > 1:
                writers[blocks[place]] = writers.get(blocks[place], 0) + 1
        # The last of a block's holders writes into the block itself.
        return missing + sum(min(count, refcount(block) - 1) for block, count in writers.items())

    def claim(self, sequence: Sequence, copies: list[tuple[int, int]]) -> None:
        """Give the sequence a block of its own to write its next token into; `copies` gets what that needs."""
        blocks, place = sequence.blocks, sequence.num_computed // BLOCK
        if place == len(blocks):
            blocks.append(self.pool.allocate())
        elif self.pool.refcount(blocks[place]) > 1:
            source, blocks[place] = blocks[place], self.pool.allocate()
            self.pool.free(source)
            if sequence.num_computed % BLOCK:
                copies.append((source, blocks[place]))

    def match_late(self, group: Group) -> None:
        """Take over blocks that others have computed since this group was seated."""
        request = group.request
        if self._prefix_cache and not request.encoder_ids and request.params.prompt_logprobs is None:
            for sequence in group.sequences:
                self._match_late(sequence, group.request.adapter)

    def register(self, group: Group, sequence: Sequence, start: int, end: int) -> None:
        """Offer blocks that became full, as tokens start … end were computed, to others."""
        if not self._prefix_cache or group.request.encoder_ids:
            return
        blocks, tokens = sequence.blocks, sequence.tokens
        for place in range(start // BLOCK, end // BLOCK):
            parent = blocks[place - 1] if place else None
            content = tokens[place * BLOCK : (place + 1) * BLOCK]
            blocks[place] = self.pool.register(blocks[place], parent, content, group.request.adapter)

    def register_prompt(self, group: Group) -> None:
        """Offer an encoder prompt's blocks to others, now that it is encoded."""
        if self._prefix_cache:
            request = group.request
            group.cross_blocks = self.pool.register_prompt(group.cross_blocks, request.encoder_ids, request.adapter)

    def check(self, tickets: Iterable[Ticket]) -> None:
        """Assert that blocks and slots are right, given all live groups."""
        tickets = list(tickets)
        self.pool.check(Counter(block for ticket in tickets for block in _blocks_of(ticket.group)))
        used = [s.slot for ticket in tickets for s in ticket.group.sequences if s.slot >= 0]
        spare = [slot for ticket in tickets for slot in ticket.spare]
        assert sorted(self._slots + spare + used) == list(range(self._max_slots))
        for ticket in tickets:
            group = ticket.group
            if group.status is Status.WAITING:
                assert not ticket.spare
                _check_waiting(group)
            else:
                assert len(group.sequences) + len(ticket.spare) == ticket.width
                _check_seated(group)

    def _match(self, group: Group) -> None:
        """Share what the cache has of a group's tokens."""
        request = group.request
        if not self._prefix_cache or request.params.prompt_logprobs is not None:
            return  # what is found in the cache has no logits
        if request.encoder_ids:
            group.cross_blocks = self.pool.match_prompt(request.encoder_ids, request.adapter)
            group.encoded = bool(group.cross_blocks)
            return
        for sequence in group.sequences:
            sequence.blocks = self.pool.match(sequence.tokens, request.adapter)
            sequence.num_computed = len(sequence.blocks) * BLOCK

    def _match_late(self, sequence: Sequence, adapter: str | None) -> None:
        blocks, tokens = sequence.blocks, sequence.tokens
        while sequence.num_computed % BLOCK == 0 and sequence.remain_len > BLOCK:
            start, place = sequence.num_computed, sequence.num_computed // BLOCK
            parent = blocks[place - 1] if place else None
            block = self.pool.following(parent, tokens[start : start + BLOCK], adapter)
            if block is None:
                return
            self.pool.share(block)
            self.pool.free(blocks[place])
            blocks[place] = block
            sequence.num_computed += BLOCK
            self.num_matched_tokens += BLOCK

    def _take_blocks(self, group: Group) -> None:
        for sequence in group.sequences:
            self.pool.free_all(sequence.blocks)
            sequence.blocks, sequence.num_computed = [], 0
        self.pool.free_all(group.cross_blocks)
        group.cross_blocks, group.encoded, group.layers_read = [], False, 0


def _child(source: Sequence, index: int, slot: int) -> Sequence:
    return Sequence(
        index=index,
        tokens=source.tokens.copy(),
        num_computed=source.num_computed,
        blocks=source.blocks.copy(),
        slot=slot,
        constraints=source.constraints,
        logprobs=source.logprobs.copy(),
    )


def _blocks_of(group: Group) -> Iterator[int]:
    for sequence in group.sequences:
        yield from sequence.blocks
    yield from group.cross_blocks


def _check_waiting(group: Group) -> None:
    assert not list(_blocks_of(group))
    assert (group.encoded, group.layers_read) == (False, 0)
    for sequence in group.sequences:
        assert (sequence.slot, sequence.num_computed) == (-1, 0)


def _check_seated(group: Group) -> None:
    assert len(group.cross_blocks) == blocks_for(len(group.request.encoder_ids))
    for sequence in group.sequences:
        assert sequence.slot >= 0
        num_blocks = len(sequence.blocks)
        assert blocks_for(sequence.num_computed) <= num_blocks <= blocks_for(len(sequence.tokens))
