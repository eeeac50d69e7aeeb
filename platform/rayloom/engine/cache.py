"""Keys and values of all running sequences, in blocks of fixed size.

Shape letters: N blocks of the pool, H key/value heads, D head size, B tokens of a block, T tokens of a step,
S sequences of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rayloom.engine.blocks import BLOCK
from rayloom.engine.kernels.library import native


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one layer's keys and values.

    Attributes:
        num_layers: Layers that attend (seq2seq: of the decoder; self- and cross-attention have blocks apart,
            out of the same pool).
        num_kv_heads: Heads of keys and values.
        head_dim: Size of a head.
        dtype: float32 or bfloat16.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BLOCK * self.dtype.itemsize


class PagedCache:
    """The pool's tensors. Which block belongs to whom is `blocks.BlockPool`'s business.

    Keys lie transposed, so that one token's query meets the B keys of a block in one vector register.

    Attributes:
        keys: Per layer ``(N, H, D, B)``.
        values: Per layer ``(N, H, B, D)``.
    """

    def __init__(self, shape: CacheShape, num_blocks: int, device: torch.device | str = "cpu") -> None:
        self.shape, self.num_blocks = shape, num_blocks
        heads, dim = shape.num_kv_heads, shape.head_dim
        key_shape, value_shape = (num_blocks, heads, dim, BLOCK), (num_blocks, heads, BLOCK, dim)
        layers = range(shape.num_layers)
        self.keys = [torch.zeros(key_shape, dtype=shape.dtype, device=device) for _ in layers]
        self.values = [torch.zeros(value_shape, dtype=shape.dtype, device=device) for _ in layers]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, source to target, in all layers: what copy-on-write needs before a step.

        No target is a source.
        """
        if not copies:
            return
        device, library = self.keys[0].device, native()
        sources, targets = (torch.tensor(side, device=device) for side in zip(*copies, strict=True))
        if library is None or device.type != "cpu":
            for tensor in (*self.keys, *self.values):
                tensor[targets] = tensor[sources]
            return
        # Indexing takes three times as long. Looked up now: a runner's tensors are its own to replace.
        tensors = torch.tensor([tensor.data_ptr() for tensor in (*self.keys, *self.values)])
        block_bytes = self.keys[0][0].nbytes
        pairs = sources.data_ptr(), targets.data_ptr(), len(copies)
        library.copy_blocks(tensors.data_ptr(), len(tensors), block_bytes, *pairs)


@dataclass(frozen=True)
class AttentionView:
    """Which queries of a step see which cached keys.

    Attributes:
        tables_SN: int32 ``(S, most blocks)``: each sequence's blocks in order; the rest is 0.
        lengths_S: int32: keys that a sequence has, those that this step writes included.
        starts_S: int32 ``(S + 1)``: queries of sequence s are rows starts[s] … starts[s + 1] of the step's T
            tokens. Under a causal mask they are the last positions: query j of q has position lengths - q + j.
        max_queries: Most queries of one sequence.
        max_keys: Most keys of one sequence.
    """

    tables_SN: torch.Tensor
    lengths_S: torch.Tensor
    starts_S: torch.Tensor
    max_queries: int
    max_keys: int
