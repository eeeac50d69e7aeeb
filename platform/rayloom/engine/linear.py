"""Linear layers with weights in float32, bfloat16 or int8. They take and give float32.

Shape letters: T tokens (rows), I input features, O output features.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch.nn import functional

from rayloom.config import WeightPrecision
from rayloom.engine.kernels.library import native
from rayloom.errors import ModelError

Precision: TypeAlias = WeightPrecision
"""What weights are held in, and what products are made of."""

_PANEL = 16  # output features that lie together: the kernels' unit
_STEP_BYTES = 64  # input features are padded to whole tiles and registers
_LEAST_PEAK = 0.1  # of the median feature's
_TINY = 1e-30  # rows below this are taken as zero: the inverse of their scale would not be finite


class Linear(Protocol):
    """Computes y = x W^T + b of float32 rows."""

    in_features: int
    out_features: int

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights as they are held."""
        ...

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """A new float32 tensor ``(T, O)``; ``x_TI`` is contiguous."""
        ...


def make_linear(
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    *,
    precision: Precision,
    peaks_I: torch.Tensor | None = None,
) -> Linear:
    """A linear layer in the given precision.

    Args:
        weight_OI: Weights of any float type. Copied into the kernel's own layout, so that the caller may drop them,
            but where they are used `in_place`.
        bias_O: Bias or None.
        precision: ``int8``: weights symmetric per output feature, inputs symmetric per row as they come (LLM.int8's
            vector-wise form, Dettmers et al., 2022), sums exact in int32. ``bf16``: weights and inputs rounded to
            bfloat16, sums in float32.
        peaks_I: Largest size that each input feature is known to take, for int8: few features of transformers are
            far larger than the rest, and would leave the others few digits. They are shrunk and their weights
            widened, until both have about the same range (SmoothQuant, Xiao et al., 2023, with alpha = 1/2).

    Raises:
        ModelError: Weights that are not finite, in int8.
    """
    if in_place(weight_OI, precision):
        return FloatLinear(weight_OI, bias_O)
    if precision == "fp32":
        return PackedFloatLinear(weight_OI, bias_O)
    packed = weight_OI.is_cpu and native() is not None
    if precision == "bf16":
        return PackedBfloatLinear(weight_OI, bias_O) if packed else TorchBfloatLinear(weight_OI, bias_O)
    return (PackedInt8Linear if packed else TorchInt8Linear)(weight_OI, bias_O, peaks_I)


def in_place(weight_OI: torch.Tensor, precision: Precision) -> bool:
    """Whether `make_linear` takes such weights as they lie (a view stays a view, if they are float32).

    That is fp32 on AMX, on GPUs and where torch's own products are used; on CPUs with AVX-512 alone the kernel is more
    than twice as fast over a layout of its own, and with fewer registers than 32 torch is.
    """
    if precision != "fp32":
        return False
    library = native() if weight_OI.is_cpu and torch.backends.cpu.get_cpu_capability() == "AVX512" else None
    return library is None or bool(library.has_float_tiles())


class FloatLinear:
    """Weights in float32, used where they lie: by our kernel on CPUs with AMX, else by torch."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self.weight_OI = weight_OI.detach().float()
        self.bias_O = None if bias_O is None else bias_O.detach().float().contiguous()
        library = native() if self.weight_OI.is_cpu and self.weight_OI.stride(1) == 1 else None
        self._has_kernel = library is not None and bool(library.has_float_tiles())

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights."""
        return self.weight_OI.nbytes

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        library = native() if self._has_kernel else None
        if library is None:
            return functional.linear(x_TI, self.weight_OI, self.bias_O)
        assert x_TI.is_contiguous()
        assert x_TI.dtype is torch.float32
        y_TO = torch.empty(x_TI.shape[0], self.out_features)
        weights = self.weight_OI.data_ptr(), self.weight_OI.stride(0)
        bias = None if self.bias_O is None else self.bias_O.data_ptr()
        library.linear_fp32_tiles(y_TO.data_ptr(), x_TI.data_ptr(), *weights, bias, *x_TI.shape, self.out_features)
        return y_TO


class TorchBfloatLinear:
    """Weights and inputs in bfloat16, sums and output in float32."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self.weight_OI = weight_OI.detach().bfloat16()
        self.bias_O = None if bias_O is None else bias_O.detach().float()

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights."""
        return self.weight_OI.nbytes

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        # In float32, so that the output is not rounded to bfloat16: this path is for equality, not for speed.
        return functional.linear(x_TI.bfloat16().float(), self.weight_OI.float(), self.bias_O)


class TorchInt8Linear:
    """Weights and inputs in int8, exact sums, in plain torch."""

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None, peaks_I: torch.Tensor | None = None
    ) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self.factor_I = _factors(weight_OI, peaks_I)
        self.weight_OI, self.scale_O = _quantise_weights(weight_OI, self.factor_I)
        self.bias_O = None if bias_O is None else bias_O.detach().float()

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and their scales."""
        return self.weight_OI.nbytes + self.scale_O.nbytes + self.factor_I.nbytes

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        quantised_TI, scale_T = quantise_rows(x_TI * self.factor_I)
        y_TO = _int_product(quantised_TI, self.weight_OI).float() * (scale_T[:, None] * self.scale_O)
        return y_TO if self.bias_O is None else y_TO + self.bias_O


def quantise_rows(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 ``(T, I)`` and float32 scales ``(T,)`` with x ~ int8 * scale; the largest value of a row becomes 127."""
    largest_T = x_TI.abs().amax(-1)
    inverse_T = torch.where(largest_T > _TINY, 127.0 / largest_T, 0.0)
    return (x_TI * inverse_T[:, None]).round().to(torch.int8), largest_T / 127.0


def _int_product(x_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """Exact x W^T of int8 tensors, in a type that holds it."""
    if x_TI.is_cpu:
        return torch._int_mm(x_TI, weight_OI.t())
    # float64 holds every sum exactly, on any device and in any shape.
    return x_TI.double() @ weight_OI.t().double()


def _factors(weight_OI: torch.Tensor, peaks_I: torch.Tensor | None) -> torch.Tensor:
    """What each input feature is multiplied with before it is rounded."""
    if peaks_I is None:
        return torch.ones(weight_OI.shape[1], device=weight_OI.device)
    widest_I = weight_OI.detach().float().abs().amax(0)
    # Features that were hardly seen may well be as large as others one day.
    least = max(_LEAST_PEAK * float(peaks_I.median()), _TINY)
    return (widest_I.clamp(min=_TINY**0.5) / peaks_I.clamp(min=least)).sqrt()


def _quantise_weights(weight_OI: torch.Tensor, factor_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight_OI, scale_O = quantise_rows(weight_OI.detach().float() / factor_I)
    if not torch.isfinite(scale_O).all():
        raise ModelError("weights hold values that are not finite; int8 cannot represent them")
    return weight_OI, scale_O


class _PackedLinear:
    """A product in C++, its weights in the kernels' own layout.

    Args:
        function: The kernel's name.
        weight_OI: int8, bfloat16 or float32.
        bias_O: Bias or None.
        factor_I: What an input feature is multiplied with, for kernels that take it.
        scale_O: What an output feature's sums are multiplied with, likewise.
    """

    def __init__(
        self,
        function: str,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        *,
        factor_I: torch.Tensor | None = None,
        scale_O: torch.Tensor | None = None,
    ) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self.panels = _panels(weight_OI)
        self.factor_I = factor_I
        self.scale_O = None if scale_O is None else _whole_panels(scale_O)
        self.bias_O = None if bias_O is None else _whole_panels(bias_O.detach().float())
        self._function = getattr(native(), function)
        # The tensors above stay where they are, so their places are looked up once.
        known = [tensor.data_ptr() for tensor in (self.factor_I, self.panels, self.scale_O) if tensor is not None]
        self._weights = (*known, None if self.bias_O is None else self.bias_O.data_ptr())
        self._padded = self.panels.shape[1] * self.panels.shape[3]

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and their scales."""
        known = (self.factor_I, self.panels, self.scale_O)
        return sum(tensor.nbytes for tensor in known if tensor is not None)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        assert x_TI.is_contiguous()
        assert x_TI.dtype is torch.float32
        num_rows = x_TI.shape[0]
        y_TO = torch.empty(num_rows, self.out_features)
        sizes = num_rows, self.in_features, self._padded, self.out_features
        self._function(y_TO.data_ptr(), x_TI.data_ptr(), *self._weights, *sizes)
        return y_TO


class PackedInt8Linear(_PackedLinear):
    """`TorchInt8Linear` in C++: the same bits."""

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None, peaks_I: torch.Tensor | None = None
    ) -> None:
        factor_I = _factors(weight_OI, peaks_I).contiguous()
        quantised_OI, scale_O = _quantise_weights(weight_OI, factor_I)
        super().__init__("linear_int8", quantised_OI, bias_O, factor_I=factor_I, scale_O=scale_O)


class PackedFloatLinear(_PackedLinear):
    """Float32 throughout, in C++: a row has the same bits in any company."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        super().__init__("linear_fp32", weight_OI.detach().float(), bias_O)


class PackedBfloatLinear(_PackedLinear):
    """`TorchBfloatLinear` in C++: equal but for the order of sums, which does not depend on the other rows."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        super().__init__("linear_bf16", weight_OI.detach().bfloat16(), bias_O)


def _panels(weight_OI: torch.Tensor) -> torch.Tensor:
    """``(panels, steps, 16 output features, lanes)``: lanes = as many input features as fill four bytes."""
    lanes, depth = 4 // weight_OI.itemsize, _STEP_BYTES // weight_OI.itemsize
    padding = (0, -weight_OI.shape[1] % depth, 0, -weight_OI.shape[0] % _PANEL)
    padded = functional.pad(weight_OI, padding)
    return padded.view(-1, _PANEL, padded.shape[1] // lanes, lanes).permute(0, 2, 1, 3).contiguous()


def _whole_panels(values_O: torch.Tensor) -> torch.Tensor:
    return functional.pad(values_O, (0, -values_O.shape[0] % _PANEL))
