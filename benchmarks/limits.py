"""What the machine can do at most: read memory, and multiply 32 rows by weights.

Run by itself: ``python benchmarks/limits.py --threads 1``. The products are those of PyTorch's own libraries (MKL and
oneDNN with packed weights), the fastest of several ways and shapes: no part of Rayloom is asked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ROWS = 32
SHAPES = ((576, 1536), (1536, 576), (1024, 1024), (2048, 2048))
"""Inputs and outputs of the matrices."""
WEIGHTS = 135_000_000
"""Weights that are gone through from memory: SmolLM2's."""
_READ_BYTES = 1 << 29
_TRIES = 5
_HOT_S = 0.15

Product = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    torch.set_num_threads(threads)
    found: dict[str, float] = {"read": read_bandwidth()}
    with torch.inference_mode():
        for precision in WAYS:
            found[precision] = gemm(precision, WEIGHTS)
            found[f"{precision} cached"] = gemm(precision, 1)
    print(json.dumps(found))


def read_bandwidth() -> float:
    """Bytes per second that half a gigabyte is read with, the best of some tries and ways."""
    values_RI = torch.ones(_READ_BYTES // 4).view(-1, 4096)
    one_I = torch.ones(4096)
    ways: tuple[Product, ...] = (values_RI.sum, lambda: values_RI @ one_I)
    return _READ_BYTES / min(seconds(way) for way in ways for _ in range(_TRIES))


def gemm(precision: str, weights: int) -> float:
    """Floating-point (or integer) operations per second at 32 rows.

    Args:
        precision: "fp32", "bf16" or "int8".
        weights: How many are gone through before one is read again; 1 for a single matrix, again and again.
    """
    best = 0.0
    for (inputs, outputs), way in itertools.product(SHAPES, WAYS[precision]):
        count = max(1, weights // (inputs * outputs))
        try:
            products = [way(inputs, outputs) for _ in range(count)]
            for product in products:
                product()
        except (RuntimeError, AttributeError, NotImplementedError):  # a way that this build or CPU does not have
            continue
        operations = 2 * ROWS * inputs * outputs
        best = max(best, operations / fastest(products))
    return best


def fastest(products: list[Product]) -> float:
    """Seconds of one product: the best of some passes over all of them, or of many over a single one."""
    passes = _TRIES
    if len(products) == 1:
        passes = max(_TRIES, int(_HOT_S / seconds(products[0])))
    return min(seconds(lambda: _all(products)) for _ in range(passes)) / len(products)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _all(products: Iterable[Product]) -> None:
    for product in products:
        product()


def _plain(dtype: torch.dtype) -> Callable[[int, int], Product]:
    def make(inputs: int, outputs: int) -> Product:
        x_RI, weight_OI = torch.randn(ROWS, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        return lambda: torch.nn.functional.linear(x_RI, weight_OI)

    return make


def _packed(dtype: torch.dtype) -> Callable[[int, int], Product]:
    def make(inputs: int, outputs: int) -> Product:
        mkldnn: Any = torch.ops.mkldnn
        x_RI, weight_OI = torch.randn(ROWS, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        packed = mkldnn._reorder_linear_weight(weight_OI.to_mkldnn(), ROWS)
        return lambda: mkldnn._linear_pointwise(x_RI, packed, None, "none", [], "")

    return make


def _int_mm(inputs: int, outputs: int) -> Product:
    x_RI, weight_OI = _integers(ROWS, inputs), _integers(outputs, inputs)
    return lambda: torch._int_mm(x_RI, weight_OI.t())


def _int_packed(inputs: int, outputs: int) -> Product:
    onednn: Any = torch.ops.onednn
    x_RI = _integers(ROWS, inputs).to(torch.int16).add(128).to(torch.uint8)
    packed = onednn.qlinear_prepack(_integers(outputs, inputs), None)
    scale_O, zero_O = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    return lambda: onednn.qlinear_pointwise(
        x_RI, 1.0, 128, packed, scale_O, zero_O, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _integers(rows: int, columns: int) -> Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8)


WAYS: dict[str, tuple[Callable[[int, int], Product], ...]] = {
    "fp32": (_plain(torch.float32), _packed(torch.float32)),
    "bf16": (_plain(torch.bfloat16), _packed(torch.bfloat16)),
    "int8": (_int_mm, _int_packed),
}

if __name__ == "__main__":
    main()
