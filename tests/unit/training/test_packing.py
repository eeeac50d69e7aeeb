"""Packed equals padded: loss and gradients, of all that packs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from rayloom.config import LoraConfig
from rayloom.data import MicroBatch, Packing
from rayloom.models import attach_lora
from rayloom.models.families import family_of
from rayloom.training import TokenLoss
from rayloom.training.batches import to_device
from tests.unit.training.packing_cases import (
    CASES,
    assert_same_gradients,
    gradients,
    is_pair,
    random_model,
    random_rows,
    taken,
)

rows = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), min_size=1, max_size=8)
packings = st.builds(Packing, st.one_of(st.none(), st.integers(8, 60)), flat=st.booleans())
seeds = st.integers(0, 10**6)


@pytest.mark.parametrize(("kind", "attention"), CASES)
@settings(max_examples=12)
@given(rows, packings, seeds, st.sampled_from([2, 4]))
def test_packing_changes_neither_loss_nor_gradients(kind, attention, sizes, packing, seed, heads):
    module = TokenLoss(random_model(kind, attention, seed=seed, heads=heads), seq2seq=is_pair(kind)).train()
    data = random_rows(sizes, pair=is_pair(kind), seed=seed)
    everything = list(range(len(data)))
    padded_loss = gradients(module, data, everything, None)
    padded = taken(module)
    assert gradients(module, data, everything, packing) == pytest.approx(padded_loss, rel=1e-5)
    assert_same_gradients(padded, taken(module))


@pytest.mark.parametrize(("kind", "attention"), CASES)
@settings(max_examples=6)
@given(st.data())
def test_the_split_into_micro_batches_and_ranks_does_not_matter(kind, attention, data):
    """Ranks average their gradients, so with `scale` of the loop their sum over all parts is the step's gradient."""
    sizes, seed = data.draw(rows), data.draw(seeds)
    module = TokenLoss(random_model(kind, attention, seed=seed), seq2seq=is_pair(kind)).train()
    dataset = random_rows(sizes, pair=is_pair(kind), seed=seed)
    num_targets = int(dataset.target_counts.sum())
    whole_loss = gradients(module, dataset, list(range(len(sizes))), None, scale=1 / num_targets)
    whole = taken(module)
    num_ranks = data.draw(st.integers(1, 3))
    places = [data.draw(st.tuples(st.integers(0, num_ranks - 1), st.integers(0, 1))) for _ in sizes]
    packing = data.draw(packings)
    losses, by_rank = 0.0, {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    for rank in range(num_ranks):
        for step in range(2):
            micro = [row for row, place in enumerate(places) if place == (rank, step)]
            if micro:
                losses += gradients(module, dataset, micro, packing, scale=num_ranks / num_targets)
        for name, gradient in taken(module).items():
            by_rank[name] += gradient / num_ranks
    assert losses == pytest.approx(whole_loss, rel=1e-5)
    assert_same_gradients(whole, by_rank)


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_with_lora_and_recomputed_activations(kind, attention):
    base = random_model(kind, attention)
    model = attach_lora(base, LoraConfig(), family_of(base.config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that nothing else would have a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    data = random_rows([(4, 3), (9, 2), (1, 5), (2, 2)], pair=is_pair(kind))
    module = TokenLoss(model, seq2seq=is_pair(kind)).train()
    padded_loss = gradients(module, data, [0, 1, 2, 3], None)
    padded = taken(module)
    assert all("lora" in name for name in padded)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert gradients(module, data, [0, 1, 2, 3], Packing(20)) == pytest.approx(padded_loss, rel=1e-5)
    assert_same_gradients(padded, taken(module))


@pytest.mark.parametrize("form", ["autocast", "weights"])
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_in_bfloat16(kind, attention, form):
    """Under autocast, as the plain backend, and with weights in bfloat16, as DeepSpeed."""
    module = TokenLoss(random_model(kind, attention), seq2seq=is_pair(kind)).train()
    data = random_rows([(4, 3), (9, 2), (1, 5), (2, 2)], pair=is_pair(kind))
    if form == "weights":
        module = module.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        padded_loss = gradients(module, data, [0, 1, 2, 3], None)
        padded = taken(module)
        assert gradients(module, data, [0, 1, 2, 3], Packing(20)) == pytest.approx(padded_loss, rel=0.02)
    packed = taken(module)
    flat = [torch.cat([g.flatten().float() for g in found.values()]) for found in (padded, packed)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.99


@settings(max_examples=30)
@given(rows)
def test_flash_attention_finds_the_rows(sizes):
    """Its kernels do not run here: transformers' own reading of the positions is what it would be given."""
    data = random_rows(sizes, pair=False)
    micro = MicroBatch(tuple(range(len(data))))
    batch = to_device(data, micro, pad_token_id=0, device=torch.device("cpu"), packing=Packing(flat=True))
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, len(data.input_ids))
    assert "attention_mask" not in batch
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    assert starts.tolist() == data.input_offsets.tolist()
    assert int(longest) == int(data.lengths.max())


def test_a_batch_that_is_not_packed_is_as_before():
    data = random_rows([(4, 3), (9, 2)], pair=True)
    batch = to_device(data, MicroBatch((0, 1)), pad_token_id=0, device=torch.device("cpu"))
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "positions"}
