"""Linear layers of each precision against exact integer or float64 arithmetic.

Shape letters: T rows, I input features, O output features.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayloom.engine.kernels import available
from rayloom.engine.linear import (
    FloatLinear,
    PackedBfloatLinear,
    PackedFloatLinear,
    PackedInt8Linear,
    TorchBfloatLinear,
    TorchInt8Linear,
    make_linear,
    quantise_rows,
)
from rayloom.errors import ModelError

INT8 = [TorchInt8Linear, *([PackedInt8Linear] if available() else [])]
BF16 = [TorchBfloatLinear, *([PackedBfloatLinear] if available() else [])]
FP32 = [FloatLinear, *([PackedFloatLinear] if available() else [])]
ROWS = [0, 1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 131]
SHAPES = [(1, 1), (5, 7), (64, 16), (63, 33), (65, 48), (576, 100), (1024, 70), (200, 960), (1100, 20)]


def draw(num_rows: int, shape: tuple[int, int], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_TI, weight_OI and bias_O; rows and channels differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed + 1000 * num_rows + shape[0] * 7 + shape[1])
    x_TI, weight_OI = (
        torch.randn(n, shape[0], generator=generator) * 10 ** torch.randn(n, 1, generator=generator)
        for n in (num_rows, shape[1])
    )
    return x_TI, weight_OI, torch.randn(shape[1], generator=generator)


@pytest.mark.parametrize("kind", INT8)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_is_exact_up_to_its_scales(kind, shape, with_bias):
    for num_rows in ROWS:
        x_TI, weight_OI, bias_O = draw(num_rows, shape)
        (q_TI, scale_T), (w_OI, scale_O) = quantise_rows(x_TI), quantise_rows(weight_OI)
        sums_TO = q_TI.numpy().astype(np.int64) @ w_OI.numpy().astype(np.int64).T
        wanted = sums_TO.astype(np.float32) * (scale_T.numpy()[:, None] * scale_O.numpy())
        wanted = wanted + bias_O.numpy() if with_bias else wanted
        assert np.array_equal(kind(weight_OI, bias_O if with_bias else None)(x_TI).numpy(), wanted)


def test_rows_quantise_to_the_nearest_of_255_steps():
    x_TI, _, _ = draw(50, (300, 1))
    x_TI[3] = 0.0
    q_TI, scale_T = quantise_rows(x_TI)
    assert q_TI.abs().amax(-1).tolist() == [0 if t == 3 else 127 for t in range(50)]
    assert ((q_TI * scale_T[:, None] - x_TI).abs() <= scale_T[:, None] * 0.5001).all()


@pytest.mark.parametrize("kind", INT8)
def test_int8_is_close_to_float(kind):
    x_TI, weight_OI, bias_O = draw(40, (576, 200))
    wanted = x_TI @ weight_OI.T + bias_O
    error = (kind(weight_OI, bias_O)(x_TI) - wanted).norm() / wanted.norm()
    assert error < 0.02


def uneven(num_rows: int, num_inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x_TI with a few features a hundred times as large as the others, as transformers have them, and weight_OI."""
    generator = torch.Generator().manual_seed(3)
    x_TI = torch.randn(num_rows, num_inputs, generator=generator)
    x_TI[:, [3, 50, 77]] *= 100.0
    return x_TI, torch.randn(150, num_inputs, generator=generator)


@pytest.mark.parametrize("kind", INT8)
def test_known_peaks_keep_the_digits_of_small_features(kind):
    x_TI, weight_OI = uneven(64, 200)
    wanted = x_TI @ weight_OI.T
    errors = [
        float((kind(weight_OI, None, peaks_I)(x_TI) - wanted).norm() / wanted.norm())
        for peaks_I in (None, x_TI.abs().amax(0))
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("kind", INT8)
def test_features_that_were_never_seen_do_not_drown_the_others(kind):
    x_TI, weight_OI = uneven(64, 200)
    peaks_I = x_TI.abs().amax(0)
    peaks_I[10:20] = 0.0
    wanted = x_TI @ weight_OI.T
    error = (kind(weight_OI, None, peaks_I)(x_TI) - wanted).norm() / wanted.norm()
    assert error < 0.02


def test_balanced_kernels_have_the_bits_of_torch():
    for num_inputs in (7, 64, 200, 577):
        x_TI, weight_OI, bias_O = draw(37, (num_inputs, 70))
        results = [kind(weight_OI, bias_O, x_TI.abs().amax(0))(x_TI) for kind in INT8]
        assert all(torch.equal(results[0], each) for each in results[1:])


@pytest.mark.parametrize("kind", BF16)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_equals_products_of_rounded_values(kind, shape):
    for num_rows in ROWS:
        x_TI, weight_OI, bias_O = draw(num_rows, shape)
        x, w = x_TI.bfloat16().double(), weight_OI.bfloat16().double()
        largest = x.abs() @ w.abs().T + bias_O.abs()
        error = (kind(weight_OI, bias_O)(x_TI).double() - (x @ w.T + bias_O)).abs()
        assert (error <= 2e-6 * largest).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rows_have_the_same_bits_alone(precision):
    if not available() and precision == "bf16":
        pytest.skip("torch's float products round differently in other shapes")
    x_TI, weight_OI, bias_O = draw(70, (200, 90))
    linear = make_linear(weight_OI, bias_O, precision=precision)
    together = linear(x_TI)
    for t in (0, 15, 33, 69):
        assert torch.equal(linear(x_TI[t : t + 1])[0], together[t])


@pytest.mark.parametrize("kind", [*INT8, *BF16, *FP32])
def test_rows_that_are_not_finite_stay_so_and_harm_no_other(kind):
    x_TI, weight_OI, bias_O = draw(20, (70, 40))
    linear = kind(weight_OI, bias_O)
    wanted = linear(x_TI)
    x_TI[4, 7], x_TI[9, 69] = torch.nan, torch.inf
    out = linear(x_TI)
    assert not out[[4, 9]].isfinite().any()
    others = [t for t in range(20) if t not in (4, 9)]
    torch.testing.assert_close(out[others], wanted[others])


@pytest.mark.parametrize("kind", INT8)
def test_rows_next_to_zero_give_the_bias(kind):
    _, weight_OI, bias_O = draw(1, (70, 40))
    out = kind(weight_OI, bias_O)(torch.full((2, 70), 1e-38))
    torch.testing.assert_close(out, bias_O.expand(2, 40))


@pytest.mark.parametrize("kind", INT8)
def test_int8_refuses_weights_that_are_not_finite(kind):
    weight_OI = torch.ones(3, 4)
    weight_OI[1, 2] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        kind(weight_OI)


def test_float32_weights_are_used_where_they_lie():
    x_TI, weight_OI, bias_O = draw(5, (30, 20))
    linear = FloatLinear(weight_OI[4:], bias_O[4:])
    weight_OI.mul_(2)
    torch.testing.assert_close(linear(x_TI), x_TI @ weight_OI[4:].T + bias_O[4:], rtol=1e-5, atol=1e-4)


def test_sizes_and_memory():
    for precision, each in (("fp32", 4), ("bf16", 2), ("int8", 1)):
        linear = make_linear(torch.randn(160, 128), precision=precision)
        assert (linear.in_features, linear.out_features) == (128, 160)
        assert linear.resident_bytes == 160 * 128 * each + ((160 + 128) * 4 if precision == "int8" else 0)
