from __future__ import annotations

import pytest
import torch

from rayloom.data import IGNORED, EncodedDataset, collate
from rayloom.training import TokenLoss
from rayloom.training.loss import shift_right, target_positions
from tests.fakes import FAMILIES, random_examples, tiny_model


def batch_of(data: EncodedDataset, rows: list[int], **padding: int) -> dict[str, torch.Tensor]:
    batch = collate([data[row] for row in rows], pad_token_id=0, seq2seq=data.seq2seq, **padding)
    return batch | {"positions": target_positions(batch["labels"], seq2seq=data.seq2seq)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_models_own_loss(family, seed):
    seq2seq = family == "t5"
    model = tiny_model(family).eval()
    data = random_examples(5, seq2seq=seq2seq, seed=seed)
    batch = collate([data[row] for row in range(5)], pad_token_id=0, seq2seq=seq2seq)
    positions = target_positions(batch["labels"], seq2seq=seq2seq)
    assert len(positions) == int(data.target_counts.sum())
    with torch.no_grad():
        ours = TokenLoss(model, seq2seq=seq2seq)(**batch, positions=positions)
        theirs = model(**batch).loss * int(data.target_counts.sum())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    seq2seq = family == "t5"
    module = TokenLoss(tiny_model(family).eval(), seq2seq=seq2seq)
    data = random_examples(6, seq2seq=seq2seq, seed=4)
    alone = [batch_of(data, [row]) for row in range(6)]
    together = batch_of(data, list(range(6)), pad_to_multiple_of=8)
    with torch.no_grad():
        assert float(module(**together)) == pytest.approx(sum(float(module(**one)) for one in alone), rel=1e-5)


def test_label_smoothing_only_while_training():
    model = tiny_model("llama")
    data = random_examples(3, seq2seq=False)
    batch = batch_of(data, [0, 1, 2])
    plain, smoothed = (TokenLoss(model, seq2seq=False, label_smoothing=s) for s in (0.0, 0.2))
    with torch.no_grad():
        assert float(smoothed.train()(**batch)) != pytest.approx(float(plain.train()(**batch)))
        assert float(smoothed.eval()(**batch)) == pytest.approx(float(plain.eval()(**batch)))


def test_shift_right():
    labels = torch.tensor([[5, 6, 1, IGNORED]])
    assert shift_right(labels, start_token_id=0, pad_token_id=9).tolist() == [[0, 5, 6, 1]]
    assert shift_right(torch.tensor([[5, IGNORED, IGNORED]]), 0, 9).tolist() == [[0, 5, 9]]


def test_the_head_is_left_as_it_was():
    model = tiny_model("llama")
    TokenLoss(model, seq2seq=False)(**batch_of(random_examples(2, seq2seq=False), [0, 1]))
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)
