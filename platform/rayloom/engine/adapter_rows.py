"""Which rows of a step have which adapter.

Shape letters: T rows of a step.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from rayloom.engine.adapter_kernel import RowItems
from rayloom.engine.adapter_tiles import RowTiles, tile_rows


class StepRows:
    """A step's rows by adapter, in the forms that its layers ask for.

    Args:
        adapters_T: int64 index of each row's adapter, -1 for none.

    Attributes:
        indices: Adapters that occur.
    """

    def __init__(self, adapters_T: torch.Tensor) -> None:
        self._adapters, self._device = adapters_T.cpu().numpy(), adapters_T.device
        self.indices = frozenset(np.unique(self._adapters).tolist()) - {-1}

    @cached_property
    def items(self) -> RowItems:
        """For the kernel."""
        return RowItems(self._adapters)

    @cached_property
    def tiles(self) -> RowTiles:
        """For plain torch."""
        return tile_rows(self._adapters, self._device)
