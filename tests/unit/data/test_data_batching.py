from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.data import (
    IGNORED,
    EncodedDataset,
    Example,
    GlobalBatch,
    collate,
    plan_epoch,
    plan_evaluation,
)

shapes = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 4), "accumulation": st.integers(1, 3), "world_size": st.integers(1, 3)}
)


def real_rows(batch: GlobalBatch) -> list[int]:
    return [row for rank in batch.micro for micro in rank if not micro.is_filler for row in micro.rows]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), shapes, st.integers(0, 3))
def test_every_row_once_and_all_ranks_in_step(num_rows: int, shape: dict[str, int], epoch: int) -> None:
    rng = np.random.default_rng(num_rows)
    lengths, counts = rng.integers(1, 100, num_rows), rng.integers(1, 20, num_rows)
    plan = plan_epoch(lengths, counts, **shape, seed=7, epoch=epoch)
    size = shape["batch_size"] * shape["accumulation"] * shape["world_size"]
    assert sorted(row for batch in plan for row in real_rows(batch)) == list(range(num_rows))
    assert [len(real_rows(batch)) for batch in plan[:-1]] == [size] * (len(plan) - 1)
    for batch in plan:
        assert len(batch.micro) == shape["world_size"]
        assert all(len(rank) == shape["accumulation"] for rank in batch.micro)
        assert batch.num_targets == counts[real_rows(batch)].sum()
        for rank in batch.micro:
            for micro in rank:
                assert 1 <= len(micro.rows) <= shape["batch_size"]
                assert not micro.is_filler or micro.rows[0] < num_rows
        sizes = [0 if micro.is_filler else len(micro.rows) for rank in batch.micro for micro in rank]
        assert max(sizes) - min(sizes) <= 1
    assert plan == plan_epoch(lengths, counts, **shape, seed=7, epoch=epoch)


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_shared_out() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 333)
    options = {"seed": 1, "epoch": 2}
    plans = [
        plan_epoch(lengths, lengths, batch_size=b, accumulation=a, world_size=w, **options)
        for b, a, w in ((8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2))
    ]
    steps = [[sorted(real_rows(batch)) for batch in plan] for plan in plans]
    assert steps[0] == steps[1] == steps[2] == steps[3]


def test_epochs_and_seeds_differ_and_lengths_are_bucketed() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 2000)
    shape = {"batch_size": 8, "accumulation": 2, "world_size": 1}
    plan = plan_epoch(lengths, lengths, **shape, seed=0, epoch=0)
    assert plan != plan_epoch(lengths, lengths, **shape, seed=0, epoch=1)
    assert plan != plan_epoch(lengths, lengths, **shape, seed=1, epoch=0)
    padded = sum(len(m.rows) * max(lengths[list(m.rows)]) for batch in plan for rank in batch.micro for m in rank)
    assert padded / lengths.sum() < 1.05
    means = [lengths[real_rows(batch)].mean() for batch in plan]
    assert means != sorted(means)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(1, 5), st.integers(1, 3))
def test_evaluation_covers_every_row_once(num_rows: int, batch_size: int, world_size: int) -> None:
    lengths = np.random.default_rng(num_rows).integers(1, 50, num_rows)
    rounds = plan_evaluation(lengths, batch_size=batch_size, world_size=world_size)
    assert all(len(ranks) == world_size for ranks in rounds)
    rows = [row for ranks in rounds for micro in ranks if not micro.is_filler for row in micro.rows]
    assert sorted(rows) == list(range(num_rows))
    assert all(len(micro.rows) <= batch_size for ranks in rounds for micro in ranks)
    longest = [max(lengths[list(micro.rows)].max() for micro in ranks) for ranks in rounds]
    assert longest == sorted(longest, reverse=True)


examples = st.lists(
    st.builds(
        lambda prompt, target, cut: Example([*prompt, *target], [IGNORED] * len(prompt) + target, *cut),
        st.lists(st.integers(0, 9), max_size=6),
        st.lists(st.integers(0, 9), min_size=1, max_size=6),
        st.tuples(st.booleans(), st.booleans()),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(examples, st.sampled_from([1, 4]))
def test_storage_and_collation_keep_every_id(made: list[Example], multiple: int) -> None:
    dataset = EncodedDataset.from_examples(made, seq2seq=False)
    assert [dataset[index] for index in range(len(dataset))] == made
    assert dataset[-1] == made[-1]
    assert dataset.lengths.tolist() == [len(example.input_ids) for example in made]
    batch = collate(made, pad_token_id=0, seq2seq=False, pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % multiple == 0
    assert batch["attention_mask"].sum(1).tolist() == dataset.lengths.tolist()
    for row, example in enumerate(made):
        width = len(example.input_ids)
        assert batch["input_ids"][row, :width].tolist() == example.input_ids
        assert batch["labels"][row].tolist() == example.labels + [IGNORED] * (batch["labels"].shape[1] - width)
    shifted = batch["labels"][:, 1:]
    assert dataset.target_counts.tolist() == (shifted != IGNORED).sum(1).tolist()


def test_seq2seq_labels_have_their_own_length() -> None:
    made = [Example([5, 6, 7], [8, 1]), Example([5], [8, 9, 9, 1])]
    batch = collate(made, pad_token_id=0, seq2seq=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, 1, IGNORED, IGNORED], [8, 9, 9, 1]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert EncodedDataset.from_examples(made, seq2seq=True).target_counts.tolist() == [2, 4]
