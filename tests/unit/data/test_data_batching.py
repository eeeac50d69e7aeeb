from __future__ import annotations

import functools
import math
import tracemalloc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.data import (
    IGNORED,
    EncodedDataset,
    Example,
    GlobalBatch,
    MicroBatch,
    Plan,
    collate,
    plan_epoch,
    plan_evaluation,
)

sizes = st.fixed_dictionaries({"global_batch_size": st.integers(1, 24), "batch_size": st.integers(1, 4)})
world_sizes = st.integers(1, 5)


def real_rows(batch: GlobalBatch) -> list[int]:
    return [row for rank in batch.micro for micro in rank if not micro.is_filler for row in micro.rows]


def random_lengths(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(num_rows)
    return rng.integers(1, 100, num_rows), rng.integers(1, 20, num_rows)


@settings(max_examples=150)
@given(st.integers(1, 300), sizes, world_sizes, st.integers(0, 3))
def test_every_row_once_and_all_ranks_in_step(num_rows: int, size: dict[str, int], ranks: int, epoch: int) -> None:
    lengths, counts = random_lengths(num_rows)
    plan = plan_epoch(lengths, counts, **size, world_size=ranks, seed=7, epoch=epoch)
    assert sorted(row for batch in plan for row in real_rows(batch)) == list(range(num_rows))
    assert [len(real_rows(batch)) for batch in plan[:-1]] == [size["global_batch_size"]] * (len(plan) - 1)
    for batch in plan:
        assert len(batch.micro) == ranks
        assert len({len(rank) for rank in batch.micro}) == 1
        # As few micro-batches as their size allows: fillers only where ranks outnumber rows.
        assert (len(batch.micro[0]) - 1) * ranks * size["batch_size"] < len(real_rows(batch))
        assert batch.num_targets == counts[real_rows(batch)].sum()
        for rank in batch.micro:
            for micro in rank:
                assert 1 <= len(micro.rows) <= size["batch_size"]
                assert not micro.is_filler or micro.rows[0] in real_rows(batch)
        shares = [0 if micro.is_filler else len(micro.rows) for rank in batch.micro for micro in rank]
        assert max(shares) - min(shares) <= 1
    assert plan == plan_epoch(lengths, counts, **size, world_size=ranks, seed=7, epoch=epoch)


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 24), st.lists(st.tuples(st.integers(1, 6), world_sizes), min_size=2))
def test_the_rows_of_a_step_depend_on_its_size_alone(num_rows: int, size: int, shares: list[tuple[int, int]]) -> None:
    lengths, counts = random_lengths(num_rows)
    options = {"global_batch_size": size, "seed": 1, "epoch": 2}
    plans = [plan_epoch(lengths, counts, batch_size=rows, world_size=ranks, **options) for rows, ranks in shares]
    steps = [[(sorted(real_rows(batch)), batch.num_targets) for batch in plan] for plan in plans]
    assert all(other == steps[0] for other in steps)


# One life of the workers: how many there are, how many steps they do, and how many of those a kill takes back.
lives = st.lists(st.tuples(world_sizes, st.integers(1, 30), st.integers(0, 10)), min_size=1, max_size=8)


@settings(max_examples=150)
@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 4), lives)
def test_no_row_is_lost_or_seen_twice_whatever_is_killed(
    num_rows: int, global_batch_size: int, batch_size: int, lives: list[tuple[int, int, int]]
) -> None:
    """A checkpoint is a number of steps: the rows behind it, over all lives, are each epoch's rows once."""
    lengths, counts = random_lengths(num_rows)
    kept: dict[tuple[int, int], list[int]] = {}
    epoch = batch = 0

    @functools.cache
    def plan_for(epoch: int, ranks: int) -> Plan[GlobalBatch]:
        return plan_epoch(
            lengths,
            counts,
            global_batch_size=global_batch_size,
            batch_size=batch_size,
            world_size=ranks,
            seed=3,
            epoch=epoch,
        )

    for ranks, steps, lost in [*lives, (1, num_rows, 0)]:
        checkpoint = (epoch, batch)
        for done in range(steps):
            plan = plan_for(epoch, ranks)
            kept[epoch, batch] = real_rows(plan[batch])
            batch += 1
            if batch == len(plan):
                epoch, batch = epoch + 1, 0
            if done < steps - lost:
                checkpoint = (epoch, batch)
        epoch, batch = checkpoint
    for finished in range(epoch):
        seen = [row for (of, _), rows in kept.items() if of == finished for row in rows]
        assert sorted(seen) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_lengths_are_bucketed() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 2000)
    shape = {"global_batch_size": 16, "batch_size": 8, "world_size": 1}
    plan = plan_epoch(lengths, lengths, **shape, seed=0, epoch=0)
    assert plan != plan_epoch(lengths, lengths, **shape, seed=0, epoch=1)
    assert plan != plan_epoch(lengths, lengths, **shape, seed=1, epoch=0)
    padded = sum(len(m.rows) * max(lengths[list(m.rows)]) for batch in plan for rank in batch.micro for m in rank)
    assert padded / lengths.sum() < 1.05
    means = [lengths[real_rows(batch)].mean() for batch in plan]
    assert means != sorted(means)


def plan_at_once(
    lengths: np.ndarray,
    counts: np.ndarray,
    *,
    global_batch_size: int,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[GlobalBatch]:
    """The plan as it was made before it became lazy: runs that began with it have to go on with the same batches."""
    rng, size = np.random.default_rng([seed, epoch]), global_batch_size

    def by_length(rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(lengths[rows], kind="stable")]

    order = rng.permutation(len(lengths))
    num_full = len(order) - len(order) % size
    full, rest = order[:num_full], order[num_full:]
    batches: list[np.ndarray] = []
    for start in range(0, num_full, size * 50):
        bucket = by_length(full[start : start + size * 50])
        batches += np.split(bucket, len(bucket) // size)
    steps = [batches[place] for place in rng.permutation(len(batches))]
    plan = []
    for rows in [*steps, by_length(rest)] if len(rest) else steps:
        accumulation = math.ceil(len(rows) / (batch_size * world_size))
        shares = np.array_split(rows, accumulation * world_size)
        filler = MicroBatch((int(rows[0]),), is_filler=True)
        micro = [MicroBatch(tuple(part.tolist())) if len(part) else filler for part in shares]
        ranks = tuple(tuple(micro[s * world_size + r] for s in range(accumulation)) for r in range(world_size))
        plan.append(GlobalBatch(ranks, int(counts[rows].sum())))
    return plan


@settings(max_examples=60)
@given(st.integers(1, 1500), sizes, world_sizes, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_the_plan_is_the_one_of_earlier_versions(
    num_rows: int, size: dict[str, int], ranks: int, seed: int, epoch: int, narrow: bool
) -> None:
    lengths, counts = random_lengths(num_rows)
    options = {**size, "world_size": ranks, "seed": seed, "epoch": epoch}
    kind = np.int32 if narrow else np.int64
    plan = plan_epoch(lengths.astype(kind), counts.astype(kind), **options)
    known = plan_at_once(lengths, counts, **options)
    assert plan == known
    assert list(plan) == known
    assert [plan[step] for step in range(len(plan))] == known
    assert plan[len(plan) // 2 :] == known[len(plan) // 2 :]
    assert list(plan[2:][1:7]) == known[2:][1:7]
    assert plan[-1] == known[-1]


def test_a_plan_of_a_million_rows_is_two_arrays() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1_000_000).astype(np.int32)
    tracemalloc.start()
    try:
        plan = plan_epoch(lengths, lengths, global_batch_size=8, batch_size=8, world_size=1, seed=0, epoch=0)
        assert len(plan) == 125_000
        for batch in plan[60_000:60_050]:
            assert batch.num_targets == lengths[real_rows(batch)].sum()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6_000_000  # four bytes for every row, and for every step
    assert peak < 12_000_000


@settings(max_examples=60)
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


@settings(max_examples=60)
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
