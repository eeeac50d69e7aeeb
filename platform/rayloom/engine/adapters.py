"""LoRA adapters (Hu et al., 2021) of one base model, held in memory so that a batch can mix them.

Shape letters: T tokens of a step, I input width of a layer, O output width, M adapters that fit, R rank.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rayloom.engine.adapter_files import Adapter, LoraPair, adaptable_layers, read_adapter
from rayloom.engine.adapter_tiles import LoraTable, RowTiles, add_tiles, tile_rows
from rayloom.errors import ModelError, RequestError

__all__ = ["LoraBank", "adaptable_layers"]


@dataclass
class _Resident:
    """An adapter in the tables."""

    index: int
    modules: frozenset[str]
    users: int = 0


@dataclass(frozen=True)
class _Source:
    """Where an adapter can be read again, and what it was."""

    folder: Path
    fingerprint: str


class LoraBank:
    """Adapters of one base model, ready to be mixed in a batch.

    An adapter that was loaded stays known by its name. When the places are all taken, the one that has been idle
    longest makes room, and comes back from its folder when it is acquired again. Methods may be called from any thread
    while a step runs: rows of adapters that are acquired are never touched.

    Args:
        max_adapters: Adapters in memory at once (M).
        max_rank: Highest rank accepted; tables are as wide as the highest rank in use.
        layers: (input width, output width) of each layer for which the runner calls `add`, by module path; see
            `adaptable_layers`. Adapters that change others are refused.
        dtype: Of the tables, float32 or bfloat16.
        device: Of the tables.
    """

    def __init__(
        self,
        max_adapters: int,
        max_rank: int,
        layers: Mapping[str, tuple[int, int]],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_adapters, self.max_rank = max_adapters, max_rank
        self._layers, self._dtype, self._device = dict(layers), dtype, torch.device(device)
        self._tables: dict[str, LoraTable] = {}
        self._sources: dict[str, _Source] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._lock = threading.RLock()
        self._tiled: tuple[torch.Tensor, RowTiles | None] | None = None

    def add(self, name: str, x_TI: torch.Tensor, y_TO: torch.Tensor, adapters_T: torch.Tensor) -> None:
        """Add each row's adapter to a layer's output, in place: y += scale (x Aᵀ) Bᵀ.

        Args:
            name: The layer's module path. A layer that none of the step's adapters changes costs nothing.
            x_TI: Its input.
            y_TO: Its output, or a slice of a fused one. Rows without an adapter stay as they are, bit for bit.
            adapters_T: int64 index of each row's adapter, -1 for none. The tiling is kept for as long as the very
                same tensor comes, so hand over one tensor per step and do not write into it.
        """
        table = self._tables.get(name)
        if table is None:
            return
        tiles = self._tiles(adapters_T)
        if tiles is not None and not table.indices.isdisjoint(tiles.indices):
            add_tiles(table, tiles, x_TI, y_TO)

    def load(self, name: str, folder: Path | str) -> int:
        """Read an adapter, also while others run; returns its index.

        Args:
            name: What requests call it. One of this name and other content is replaced.
            folder: PEFT folder.

        Raises:
            ModelError: It cannot be served here (see `adapter_files.read_adapter`), its rank is too high, or requests
                in flight use an older one of this name.
            RequestError: Requests in flight use all places.
        """
        folder = Path(folder)
        adapter = read_adapter(folder, self._layers)
        if adapter.rank > self.max_rank:
            raise ModelError(f"{folder}: the adapter has rank {adapter.rank}; this engine takes up to {self.max_rank}")
        with self._lock:
            if name in self._residents and self._sources[name].fingerprint != adapter.fingerprint:
                self._refuse_in_use(name)
                self._remove(name)
            if name not in self._residents:
                self._place(name, adapter)
            self._residents.move_to_end(name)
            self._sources[name] = _Source(folder, adapter.fingerprint)
            return self._residents[name].index

    def acquire(self, name: str) -> int:
        """Keep an adapter in its place for one more request, read again if it had made room; returns its index.

        Raises:
            RequestError: Unknown, or requests in flight use all places.
            ModelError: It had made room, and its folder is not what it was any more.
        """
        with self._lock:
            source = self._source(name)
            if name not in self._residents:
                adapter = read_adapter(source.folder, self._layers)
                if adapter.fingerprint != source.fingerprint:
                    raise ModelError(f"{source.folder} has changed since adapter '{name}' was loaded: load it again")
                self._place(name, adapter)
            resident = self._residents[name]
            resident.users += 1
            self._residents.move_to_end(name)
            return resident.index

    def release(self, name: str) -> None:
        """One request less uses an adapter: every `acquire` is followed by one."""
        with self._lock:
            resident = self._residents[name]
            assert resident.users > 0, f"adapter '{name}' is released more often than it was acquired"
            resident.users -= 1

    def index(self, name: str) -> int:
        """Place of an adapter in the tables; good for as long as it is acquired.

        Raises:
            RequestError: It is not in the tables.
        """
        resident = self._residents.get(name)
        if resident is None:
            self._source(name)
            raise RequestError(f"adapter '{name}' is not in memory: it has to be acquired first")
        return resident.index

    def fingerprint(self, name: str) -> str:
        """SHA-256 of an adapter's files: if a `load` has changed it, what the old one computed is stale.

        Raises:
            RequestError: Unknown.
        """
        return self._source(name).fingerprint

    def evict(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            RequestError: Unknown.
            ModelError: Requests in flight use it.
        """
        with self._lock:
            self._source(name)
            if name in self._residents:
                self._refuse_in_use(name)
                self._remove(name)
            del self._sources[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that can be acquired."""
        return tuple(sorted(self._sources))

    @property
    def residents(self) -> tuple[str, ...]:
        """Those in memory, the longest idle first."""
        return tuple(self._residents)

    @property
    def resident_bytes(self) -> int:
        """Address space of the tables. On CPUs, places that were never used take no memory."""
        return sum(table.downs_MRI.nbytes + table.ups_MRO.nbytes for table in self._tables.values())

    def _tiles(self, adapters_T: torch.Tensor) -> RowTiles | None:
        kept = self._tiled
        if kept is None or kept[0] is not adapters_T:
            kept = self._tiled = adapters_T, tile_rows(adapters_T.cpu().numpy(), adapters_T.device)
        return kept[1]

    def _source(self, name: str) -> _Source:
        try:
            return self._sources[name]
        except KeyError:
            known = ", ".join(self.names) or "none"
            raise RequestError(f"there is no adapter '{name}'; loaded are: {known}") from None

    def _refuse_in_use(self, name: str) -> None:
        if users := self._residents[name].users:
            raise ModelError(f"adapter '{name}' is in use by {users} requests: wait, or take another name")

    def _place(self, name: str, adapter: Adapter) -> None:
        if len(self._residents) == self.max_adapters:
            idle = next((other for other, resident in self._residents.items() if not resident.users), None)
            if idle is None:
                raise RequestError(
                    f"all {self.max_adapters} places for adapters are in use by other requests, so '{name}' has to wait"
                )
            self._remove(idle)
        taken = {resident.index for resident in self._residents.values()}
        index = next(i for i in range(self.max_adapters) if i not in taken)
        for module, pair in adapter.pairs.items():
            self._write(module, index, pair)
        self._residents[name] = _Resident(index, frozenset(adapter.pairs))

    @torch.inference_mode()
    def _write(self, module: str, index: int, pair: LoraPair) -> None:
        rank, old = len(pair.down_RI), self._tables.get(module)
        table = old
        if table is None or table.downs_MRI.shape[1] < rank:
            downs_MRI, ups_MRO = (self._zeros(rank, width) for width in self._layers[module])
            if old is not None:
                for other in old.indices:  # the rest is left untouched, and so takes no memory
                    downs_MRI[other, : old.downs_MRI.shape[1]] = old.downs_MRI[other]
                    ups_MRO[other, : old.ups_MRO.shape[1]] = old.ups_MRO[other]
            table = LoraTable(downs_MRI, ups_MRO, old.indices if old is not None else frozenset())
        table.downs_MRI[index, :rank] = pair.down_RI
        table.ups_MRO[index, :rank] = pair.up_RO
        self._tables[module] = LoraTable(table.downs_MRI, table.ups_MRO, table.indices | {index})

    @torch.inference_mode()
    def _remove(self, name: str) -> None:
        gone = self._residents.pop(name)
        for module in gone.modules:
            table = self._tables[module]
            if left := table.indices - {gone.index}:
                table.downs_MRI[gone.index] = 0
                table.ups_MRO[gone.index] = 0
                self._tables[module] = LoraTable(table.downs_MRI, table.ups_MRO, left)
            else:
                del self._tables[module]

    def _zeros(self, rank: int, width: int) -> torch.Tensor:
        return torch.zeros(self.max_adapters, rank, width, dtype=self._dtype, device=self._device)
