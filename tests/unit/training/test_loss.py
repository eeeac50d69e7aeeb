from __future__ import annotations

import pytest
import torch

from rayloom.data import IGNORED, collate
from rayloom.training import TokenLoss
from rayloom.training.loss import shift_right
from tests.fakes import FAMILIES, random_examples, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_models_own_loss(family, seed):
    seq2seq = family == "t5"
    model = tiny_model(family).eval()
    data = random_examples(5, seq2seq=seq2seq, seed=seed)
    batch = collate([data[row] for row in range(5)], pad_token_id=0, seq2seq=seq2seq)
    first = int((batch["labels"] != IGNORED).any(0).int().argmax())
    with torch.no_grad():
        ours = TokenLoss(model, seq2seq=seq2seq)(**batch, first_target=first)
        theirs = model(**batch).loss * int(data.target_counts.sum())
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    seq2seq = family == "t5"
    module = TokenLoss(tiny_model(family).eval(), seq2seq=seq2seq)
    data = random_examples(6, seq2seq=seq2seq, seed=4)
    alone = [collate([data[row]], pad_token_id=0, seq2seq=seq2seq) for row in range(6)]
    together = collate([data[row] for row in range(6)], pad_token_id=0, seq2seq=seq2seq, pad_to_multiple_of=8)
    with torch.no_grad():
        assert float(module(**together)) == pytest.approx(sum(float(module(**one)) for one in alone), rel=1e-5)


def test_label_smoothing_only_while_training():
    model = tiny_model("llama")
    data = random_examples(3, seq2seq=False)
    batch = collate([data[row] for row in range(3)], pad_token_id=0, seq2seq=False)
    plain, smoothed = (TokenLoss(model, seq2seq=False, label_smoothing=s) for s in (0.0, 0.2))
    with torch.no_grad():
        assert float(smoothed.train()(**batch)) != pytest.approx(float(plain.train()(**batch)))
        assert float(smoothed.eval()(**batch)) == pytest.approx(float(plain.eval()(**batch)))


def test_shift_right():
    labels = torch.tensor([[5, 6, 1, IGNORED]])
    assert shift_right(labels, start_token_id=0, pad_token_id=9).tolist() == [[0, 5, 6, 1]]
    assert shift_right(torch.tensor([[5, IGNORED, IGNORED]]), 0, 9).tolist() == [[0, 5, 9]]
