"""The block pool against a plain book of what every block holds."""

import random

import pytest

from rayloom.engine import cache
from rayloom.engine.blocks import BLOCK, BlockPool, blocks_for


class Book:
    """What each block holds, in full: the head up to its end, and who computed it. Forgotten when it is given anew."""

    def __init__(self) -> None:
        self.heads: dict[int, tuple[str | None, tuple[int, ...]]] = {}

    def longest(self, tokens: list[int], adapter: str | None) -> int:
        """Tokens of the longest head that is held without a gap and leaves one token."""
        known, length = set(self.heads.values()), 0
        while length + BLOCK < len(tokens) and (adapter, tuple(tokens[: length + BLOCK])) in known:
            length += BLOCK
        return length


class Writer:
    """Uses the pool as a sequence does: match, compute the rest, register full blocks, free from the end."""

    def __init__(self, pool: BlockPool, book: Book, tokens: list[int], adapter: str | None) -> None:
        self.pool, self.book, self.tokens, self.adapter = pool, book, tokens, adapter
        expected = book.longest(tokens, adapter)
        self.blocks = pool.match(tokens, adapter)
        assert len(self.blocks) * BLOCK == expected
        for place, block in enumerate(self.blocks):
            assert book.heads[block] == (adapter, tuple(tokens[: (place + 1) * BLOCK]))

    def write_all(self) -> bool:
        """Whether there was room."""
        while len(self.blocks) < blocks_for(len(self.tokens)):
            if not self.pool.num_free:
                return False
            self.blocks.append(self.pool.allocate())
            self.book.heads.pop(self.blocks[-1], None)
            self._register(len(self.blocks) - 1)
        return True

    def _register(self, place: int) -> None:
        content = self.tokens[place * BLOCK : (place + 1) * BLOCK]
        if len(content) < BLOCK:
            return
        own = self.blocks[place]
        parent = self.blocks[place - 1] if place else None
        self.blocks[place] = self.pool.register(own, parent, content, self.adapter)
        head = (self.adapter, tuple(self.tokens[: (place + 1) * BLOCK]))
        if self.blocks[place] == own:
            assert head not in self.book.heads.values()
            self.book.heads[own] = head
        assert self.book.heads[self.blocks[place]] == head

    def close(self) -> None:
        self.pool.free_all(self.blocks)


def references(writers: list[Writer]) -> dict[int, int]:
    held = [block for writer in writers for block in writer.blocks]
    return {block: held.count(block) for block in held}


@pytest.mark.parametrize("seed", range(40))
def test_matches_are_the_longest_heads_that_some_block_still_holds(seed: int) -> None:
    draw = random.Random(seed)
    pool, book, writers = BlockPool(draw.randint(4, 30)), Book(), list[Writer]()
    heads = [[draw.randrange(2)] * BLOCK for _ in range(3)]
    for _ in range(200):
        if writers and draw.random() < 0.45:
            writers.pop(draw.randrange(len(writers))).close()
        else:
            tokens = [token for _ in range(draw.randint(0, 4)) for token in draw.choice(heads)]
            tokens += [draw.randrange(2)] * draw.randint(1, BLOCK)
            writer = Writer(pool, book, tokens, draw.choice([None, "a"]))
            if writer.write_all():
                writers.append(writer)
            else:
                writer.close()
        pool.check(references(writers))
    for writer in writers:
        writer.close()
    pool.check({})
    assert pool.num_free == pool.num_blocks


def test_tokens_with_equal_hashes_are_not_taken_for_equal() -> None:
    assert hash((-1,) * BLOCK) == hash((-2,) * BLOCK)
    pool = BlockPool(4)
    pool.register(pool.allocate(), None, [-1] * BLOCK, None)
    assert pool.match([-2] * BLOCK + [0], None) == []
    assert len(pool.match([-1] * BLOCK + [0], None)) == 1


def test_equal_blocks_under_different_heads_are_different() -> None:
    pool, book = BlockPool(8), Book()
    Writer(pool, book, [1] * BLOCK + [7] * BLOCK + [0], None).write_all()
    assert Writer(pool, book, [2] * BLOCK + [7] * BLOCK + [0], None).blocks == []
    assert Writer(pool, book, [7] * BLOCK + [0], None).blocks == []
    assert Writer(pool, book, [1] * BLOCK + [7] * BLOCK + [0], "adapter").blocks == []


def test_one_token_always_remains_to_be_computed() -> None:
    pool, book = BlockPool(8), Book()
    Writer(pool, book, [1] * (3 * BLOCK), None).write_all()
    for length in range(1, 4 * BLOCK):
        matched = pool.match([1] * length, None)
        assert len(matched) == min((length - 1) // BLOCK, 3)
        pool.free_all(matched)


@pytest.mark.parametrize("num_taken", range(7))
def test_the_least_recently_used_goes_first_and_tails_before_heads(num_taken: int) -> None:
    pool, book = BlockPool(6), Book()
    for token in (1, 2, 1):
        writer = Writer(pool, book, [token] * (3 * BLOCK), None)
        writer.write_all()
        writer.close()
    for _ in range(num_taken):
        pool.allocate()
    left = [len(pool.match([token] * (3 * BLOCK) + [0], None)) for token in (2, 1)]
    assert left == [max(3 - num_taken, 0), min(6 - num_taken, 3)]


def test_used_blocks_are_never_given_away() -> None:
    pool, book = BlockPool(5), Book()
    kept = Writer(pool, book, [1] * (2 * BLOCK) + [0], None)
    kept.write_all()
    fresh = [pool.allocate() for _ in range(2)]
    assert pool.num_free == 0
    assert not set(fresh) & set(kept.blocks)
    with pytest.raises(AssertionError):
        pool.allocate()


@pytest.mark.parametrize("seed", range(20))
def test_equal_encoder_prompts_share_all_their_blocks(seed: int) -> None:
    draw = random.Random(seed)
    pool = BlockPool(12)
    held: list[list[int]] = []
    known: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}
    for _ in range(200):
        if held and draw.random() < 0.5:
            pool.free_all(held.pop(draw.randrange(len(held))))
            continue
        ids, adapter = tuple([draw.randrange(3)] * draw.randint(1, 4 * BLOCK)), draw.choice([None, "a"])
        blocks = pool.match_prompt(ids, adapter)
        assert blocks == known.get((adapter, ids), [])
        if not blocks and pool.num_free >= blocks_for(len(ids)):
            blocks = [pool.allocate() for _ in range(blocks_for(len(ids)))]
            known = {key: other for key, other in known.items() if not set(other) & set(blocks)}
            assert pool.register_prompt(blocks, ids, adapter) == blocks
            known[adapter, ids] = blocks
        if blocks:
            held.append(blocks)
        flat = [block for blocks in held for block in blocks]
        pool.check({block: flat.count(block) for block in flat})


def test_a_prompt_encoded_twice_at_once_is_kept_once() -> None:
    pool = BlockPool(6)
    one, two = ([pool.allocate() for _ in range(2)] for _ in range(2))
    ids = tuple(range(20))
    assert pool.register_prompt(one, ids, None) == one
    assert pool.register_prompt(two, ids, None) == one
    pool.check(dict.fromkeys(one, 2))
    assert pool.num_free == 4


def test_forgotten_adapters_match_nothing_and_their_room_comes_back() -> None:
    pool, book = BlockPool(4), Book()
    for adapter in ("a", "b"):
        writer = Writer(pool, book, [1] * BLOCK + [0], adapter)
        writer.write_all()
        writer.close()
    pool.forget("a")
    assert pool.match([1] * BLOCK + [0], "a") == []
    assert len(pool.match([1] * BLOCK + [0], "b")) == 1
    assert len({pool.allocate() for _ in range(3)}) == 3


def test_block_sizes_agree() -> None:
    assert BLOCK == cache.BLOCK
