"""Log-probabilities, the largest of rows, copies of blocks and float32 products: kernels against plain loops."""

from __future__ import annotations

import pytest
import torch

from rayloom.engine import kernels
from rayloom.engine.blocks import BLOCK
from rayloom.engine.cache import CacheShape, PagedCache
from rayloom.engine.kernels.selection import MOST, largest_native, log_softmax, log_softmax_torch
from rayloom.engine.linear import FloatLinear, make_linear
from rayloom.engine.rankings import _largest, largest, largest_log_probs

SIZES = [1, 7, 15, 16, 255, 256, 257, 1000, 5003, 32128]
COUNTS = [1, 2, 8, 64, 65]

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="the C++ kernels are not built here")


def random_logits(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows with many ties, many -inf, a single finite score, none at all; the rest as they come."""
    generator = torch.Generator().manual_seed(width + seed)
    logits_RV = torch.randn(num_rows, width, generator=generator) * 5
    logits_RV[0] = logits_RV[0].round()
    logits_RV[1, torch.rand(width, generator=generator) < 0.9] = -torch.inf
    logits_RV[2, : width - 1] = -torch.inf
    logits_RV[3] = -torch.inf
    logits_RV[4] = 1.5
    return logits_RV


def ordered(scores_V: torch.Tensor, count: int) -> list[tuple[float, int]]:
    """The best by the rule: larger first, of equals the lowest place first; none of -inf."""
    places = sorted(range(len(scores_V)), key=lambda place: (-float(scores_V[place]), place))[:count]
    return [(float(scores_V[place]), place) for place in places if scores_V[place] > -torch.inf]


def as_pairs(values_K: torch.Tensor, places_K: torch.Tensor) -> list[tuple[float, int]]:
    pairs = zip(values_K.tolist(), places_K.tolist(), strict=True)
    return [pair for pair in pairs if pair[0] > -torch.inf]


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("way", [largest, _largest], ids=["kernel", "torch"])
def test_the_largest_are_in_order_and_ties_take_the_lowest_place(way, width: int, count: int) -> None:
    count = min(count, width)
    scores_RV = random_logits(7, width)
    values_RK, places_RK = way(scores_RV, count)
    for values_K, places_K, scores_V in zip(values_RK, places_RK, scores_RV, strict=True):
        assert as_pairs(values_K, places_K) == ordered(scores_V, count)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("way", [log_softmax, log_softmax_torch])
def test_log_softmax(way, width: int) -> None:
    logits_RV = random_logits(7, width)
    wanted_RV = logits_RV.double().log_softmax(1)
    wanted_RV[wanted_RV.isnan()] = -torch.inf  # where nothing is possible
    torch.testing.assert_close(way(logits_RV).double(), wanted_RV, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_the_best_log_probabilities_have_the_bits_of_whole_rows(width: int, count: int) -> None:
    count = min(count, width)
    # Large logits: rounding makes log-probabilities equal that were not.
    logits_RV = random_logits(7, width) + torch.randint(0, 3, (7, 1)) * 4096.0
    scores_RV = log_softmax(logits_RV)
    values_RK, places_RK = largest_log_probs(logits_RV, count)
    for row, scores_V in enumerate(scores_RV):
        assert as_pairs(values_RK[row], places_RK[row]) == ordered(scores_V, count)


@needs_kernels
def test_a_row_has_the_same_bits_in_any_company() -> None:
    logits_RV = random_logits(7, 4999)
    for count in (8, MOST):
        together = largest_log_probs(logits_RV, count)
        for row in range(7):
            alone = largest_log_probs(logits_RV[row : row + 1], count)
            assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together, strict=True))
    assert largest_native(logits_RV, MOST + 1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_copied_in_all_layers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cache = PagedCache(CacheShape(3, 2, 20, dtype), 9)
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.randn(tensor.shape))
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    copies = [(1, 5), (1, 0), (8, 2)]
    cache.copy_blocks([])
    cache.copy_blocks(copies)
    for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
        for source, target in copies:
            old[target] = old[source]
        assert torch.equal(tensor, old)
        assert BLOCK in tensor.shape


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (3, 5), (16, 4), (64, 130), (100, 17), (513, 33), (1040, 259)])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 16, 17, 70, 150])
@pytest.mark.parametrize("has_bias", [False, True])
def test_float_products(depth: int, width: int, num_rows: int, has_bias: bool) -> None:
    torch.manual_seed(depth + width)
    weight_OI, bias_O = torch.randn(width, depth + 3)[:, 1:-2], torch.randn(width) if has_bias else None
    x_TI = torch.randn(num_rows, depth)
    wanted_TO = x_TI.double() @ weight_OI.double().t() + (0 if bias_O is None else bias_O.double())
    for linear in (FloatLinear(weight_OI, bias_O), make_linear(weight_OI, bias_O, precision="fp32")):
        torch.testing.assert_close(linear(x_TI).double(), wanted_TO, rtol=1e-5, atol=1e-4)
        if isinstance(linear, FloatLinear):
            assert linear.weight_OI.data_ptr() == weight_OI.data_ptr(), "held twice"


@pytest.mark.parametrize("depth", [31, 512, 1536])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_float_products_are_as_close_as_those_of_float32(depth: int, scale: float) -> None:
    """Rows and features whose values differ by orders of magnitude, against sums in float64."""
    torch.manual_seed(depth)
    weight_OI = torch.randn(70, depth) * 10 ** torch.randn(70, depth)
    x_TI = torch.randn(40, depth) * 10 ** torch.randn(40, depth) * scale
    wanted_TO = x_TI.double() @ weight_OI.double().t()
    size_TO = x_TI.double().abs() @ weight_OI.double().abs().t()
    ours, torchs = (
        (y_TO.double() - wanted_TO).abs() / size_TO
        for y_TO in (make_linear(weight_OI, precision="fp32")(x_TI), x_TI @ weight_OI.t())
    )
    assert ours.mean() < 1.2 * torchs.mean()
    assert ours.max() < 1.5 * torchs.max()


@needs_kernels
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="torch's own products are used here")
@pytest.mark.parametrize(("depth", "width"), [(64, 130), (100, 17), (1040, 259)])
def test_rows_of_float_products_have_the_same_bits_in_any_company(depth: int, width: int) -> None:
    torch.manual_seed(depth)
    linear = make_linear(torch.randn(width, depth), torch.randn(width), precision="fp32")
    x_TI = torch.randn(150, depth)
    y_TO = linear(x_TI)
    for first, last in ((0, 1), (3, 6), (5, 22), (69, 70), (2, 70), (100, 150), (0, 130)):
        assert torch.equal(linear(x_TI[first:last]), y_TO[first:last])
