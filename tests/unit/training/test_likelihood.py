"""The summed loss and its gradient are those of PyTorch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.training import likelihood
from rayloom.training.likelihood import summed_likelihood


def both(logits: torch.Tensor, targets: torch.Tensor, smoothing: float, scale: float):
    results = []
    for function in (
        lambda x: summed_likelihood(x, targets, label_smoothing=smoothing),
        lambda x: F.cross_entropy(x.float(), targets, reduction="sum", label_smoothing=smoothing),
    ):
        own = logits.clone().requires_grad_()
        loss = function(own)
        (loss * scale).backward()
        results.append((loss.detach(), own.grad))
    return results


@settings(max_examples=60)
@given(
    tokens=st.integers(0, 40),
    vocabulary=st.integers(2, 90),
    part=st.integers(1, 400),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    scale=st.sampled_from([1.0, 0.01, 0.0]),
    seed=st.integers(0, 99),
)
def test_it_is_pytorchs_in_parts_of_any_size(tokens, vocabulary, part, smoothing, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(tokens, vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(likelihood._VALUES, "cpu", part)
        (loss, gradient), (wanted_loss, wanted) = both(logits, targets, smoothing, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_is_rounded_once():
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(50, 300, dtype=torch.bfloat16), torch.randint(300, (50,))
    (loss, gradient), (wanted_loss, wanted) = both(logits, targets, 0.0, 0.37)
    torch.testing.assert_close(loss, wanted_loss)
    assert gradient.dtype == torch.bfloat16
    # At most one step of bfloat16 apart, where float32 fell on the other side of a rounding.
    torch.testing.assert_close(gradient, wanted, rtol=2**-7, atol=1e-6)
    assert (gradient == wanted).float().mean() > 0.99


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    logits = torch.zeros(3, 5)
    logits[1, 2] = bad
    (loss, gradient), _ = both(logits, torch.tensor([0, 1, 2]), 0.0, 1.0)
    assert not torch.isfinite(loss)
    assert not torch.isfinite(gradient[1]).all()
    assert torch.isfinite(gradient[[0, 2]]).all()


def test_only_the_logits_themselves_are_kept():
    logits = torch.randn(64, 200, dtype=torch.bfloat16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        summed_likelihood(logits, torch.zeros(64, dtype=torch.long))
    assert max(tensor.nbytes for tensor in kept) == logits.nbytes
    assert sum(tensor.nbytes for tensor in kept if tensor.numel() == logits.numel()) == logits.nbytes


def test_its_gradient_agrees_with_differences():
    torch.manual_seed(1)
    logits, targets = torch.randn(3, 7, dtype=torch.float64, requires_grad=True), torch.tensor([1, 0, 6])
    summed_likelihood(logits, targets, label_smoothing=0.2).backward()
    step = 1e-3
    for place in ((0, 1), (1, 4), (2, 6)):
        moved = [logits.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (float(F.cross_entropy(x, targets, reduction="sum", label_smoothing=0.2)) for x in moved)
        assert float(logits.grad[place]) == pytest.approx((up - down) / (2 * step), abs=1e-4)
