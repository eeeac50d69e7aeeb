from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.data import IGNORED, Example, Packing, collate, collate_packed
from rayloom.data.packing import fill_bins

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
pairs = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=20)


def random_examples(sizes: list[tuple[int, int]], *, seq2seq: bool) -> list[Example]:
    rng = np.random.default_rng(len(sizes))
    draw = lambda size: rng.integers(5, 1000, size).tolist()  # noqa: E731
    if seq2seq:
        return [Example(draw(source), draw(target)) for source, target in sizes]
    inputs = [(draw(prompt), draw(target)) for prompt, target in sizes]
    return [Example([*prompt, *target], [*[IGNORED] * len(prompt), *target]) for prompt, target in inputs]


def cut(values_BT: torch.Tensor, positions_BT: torch.Tensor) -> list[list[int]]:
    """The rows of packed sequences again; padding gives rows of one."""
    rows: list[list[int]] = []
    for values, places in zip(values_BT.tolist(), positions_BT.tolist(), strict=True):
        for value, place in zip(values, places, strict=True):
            if place == 0:
                rows.append([])
            assert len(rows[-1]) == place
            rows[-1].append(value)
    return rows


@settings(max_examples=200)
@given(lengths, st.integers(0, 100))
def test_bins_hold_every_row_once_and_no_more_than_fits(sizes: list[int], room: int) -> None:
    capacity = max(*sizes, room, 1)
    bins = fill_bins([(size,) for size in sizes], [capacity])
    assert sorted(row for rows in bins for row in rows) == list(range(len(sizes)))
    filled = [sum(sizes[row] for row in rows) for rows in bins]
    assert max(filled) <= capacity
    assert all(one + other > capacity for place, one in enumerate(filled) for other in filled[place + 1 :])
    assert 9 * len(bins) <= 11 * -(-sum(sizes) // capacity) * 9 + 6 * 9


@settings(max_examples=200)
@given(pairs, st.integers(0, 80))
def test_bins_of_two_sides_overflow_on_neither(sizes: list[tuple[int, int]], room: int) -> None:
    capacities = [max(*side, room, 1) for side in zip(*sizes, strict=True)]
    bins = fill_bins(sizes, capacities)
    assert sorted(row for rows in bins for row in rows) == list(range(len(sizes)))
    for rows in bins:
        assert all(sum(sizes[row][side] for row in rows) <= capacities[side] for side in (0, 1))
    assert bins == fill_bins(sizes, capacities)


@settings(max_examples=200)
@given(st.one_of(pairs, lengths), st.integers(0, 80))
def test_the_bins_taken_are_level_and_never_worse(sizes: list, room: int) -> None:
    sizes = [size if isinstance(size, tuple) else (size,) for size in sizes]
    filled = fill_bins(sizes, [max(*side, room, 1) for side in zip(*sizes, strict=True)])
    taken = Packing(room or None).bins(sizes)
    assert sorted(row for rows in taken for row in rows) == list(range(len(sizes)))
    assert len(taken) == len(filled)
    assert all(taken)
    for side in range(len(sizes[0])):
        widths = [max(sum(sizes[row][side] for row in rows) for rows in bins) for bins in (taken, filled)]
        assert widths[0] <= widths[1]
    assert taken == Packing(room or None).bins(sizes)


def test_a_last_bin_is_not_left_half_empty() -> None:
    assert Packing(48).bins([(14,), (13,), (12,), (11,)]) == [[0, 3], [1, 2]]


def test_first_fit_decreasing_by_hand() -> None:
    assert fill_bins([(3,), (7,), (5,), (3,), (2,)], [10]) == [[1, 0], [2, 3, 4]]
    assert fill_bins([(4, 1), (4, 9), (2, 2)], [10, 10]) == [[1, 0], [2]]


@pytest.mark.parametrize(
    ("packing", "expected"),
    [
        (Packing(), [[0], [1, 2]]),
        (Packing(4), [[0], [1, 2]]),
        (Packing(9), [[0, 1, 2]]),
        (Packing(flat=True), [[0, 1, 2]]),
    ],
)
def test_a_bin_is_never_shorter_than_the_longest_row(packing: Packing, expected: list[list[int]]) -> None:
    assert packing.bins([(5,), (3,), (1,)]) == expected


@settings(max_examples=100)
@given(pairs, st.booleans(), st.one_of(st.none(), st.integers(1, 100)), st.booleans())
def test_packed_tensors_hold_the_rows(
    sizes: list[tuple[int, int]], seq2seq: bool, room: int | None, flat: bool
) -> None:
    examples = random_examples(sizes, seq2seq=seq2seq)
    packing = Packing(room, flat=flat)
    batch = collate_packed(examples, pad_token_id=0, seq2seq=seq2seq, packing=packing)
    order = [
        row
        for rows in packing.bins(
            [(len(e.input_ids), len(e.labels)) if seq2seq else (len(e.input_ids),) for e in examples]
        )
        for row in rows
    ]
    assert [ids for ids in cut(batch["input_ids"], batch["position_ids"]) if ids != [0]] == [
        examples[row].input_ids for row in order
    ]
    target_places = batch["target_position_ids" if seq2seq else "position_ids"]
    labels = [row for row in cut(batch["labels"], target_places) if row != [IGNORED]]
    expected = [examples[row].labels if seq2seq else [IGNORED, *examples[row].labels[1:]] for row in order]
    assert labels == [row for row in expected if row != [IGNORED]]
    assert ("target_position_ids" in batch) == seq2seq
    if flat:
        assert batch["input_ids"].shape == (1, sum(len(example.input_ids) for example in examples))


def test_documents_shorter_than_a_block_fill_it() -> None:
    documents = [Example([7] * size, [7] * size) for size in (50, 6, 5, 20, 10, 9)]
    packed = collate_packed(documents, pad_token_id=0, seq2seq=False, packing=Packing(50))
    padded = collate(documents, pad_token_id=0, seq2seq=False)
    assert packed["input_ids"].shape == (2, 50)
    assert padded["input_ids"].shape == (6, 50)
    assert int((packed["labels"] != IGNORED).sum()) == sum(size - 1 for size in (50, 6, 5, 20, 10, 9))
