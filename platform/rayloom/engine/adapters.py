"""LoRA adapters (Hu et al., 2021) of one base model, held in memory so that a batch can mix them.

Shape letters: T tokens of a step, I input width of a layer, O output width, M adapters that fit, R rank.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from rayloom.engine.adapter_files import Adapter, adaptable_layers, read_adapter
from rayloom.engine.adapter_kernel import LayerGroup
from rayloom.engine.adapter_rows import StepRows
from rayloom.engine.adapter_tables import LoraTable, TableKind, put, take
from rayloom.engine.adapter_tiles import add_tiles
from rayloom.errors import ModelError, RequestError

__all__ = ["LayerParts", "LoraBank", "StepRows", "adaptable_layers"]

LayerParts: TypeAlias = tuple[tuple[str, int, int], ...]
"""Layers whose outputs lie side by side: module path, first and last + 1 of the output features."""


@dataclass
class _Resident:
    """An adapter in the tables."""

    index: int
    modules: frozenset[str]
    holds: int = 0


@dataclass(frozen=True)
class _Source:
    """Where an adapter can be read again, and what it was."""

    folder: Path
    fingerprint: str


class LoraBank:
    """Adapters of one base model, ready to be mixed in a batch.

    An adapter that was loaded stays known by its name. When the places are all taken, the one that has been idle
    longest makes room, and comes back from its folder when it is held again. Methods may be called from any thread
    while a step runs: places of adapters that are held are never touched.

    Args:
        max_adapters: Adapters in memory at once (M).
        max_rank: Highest rank accepted; tables are as wide as the highest rank in use.
        layers: (input width, output width) of each layer for which the runner calls `add`, by module path; see
            `adaptable_layers`. Adapters that change others are refused.
        dtype: Of the matrices in memory: float32, bfloat16, or int8 with a scale for each of an adapter's ranks.
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
        self._layers, self._kind = dict(layers), TableKind(max_adapters, dtype, torch.device(device))
        self._tables: dict[str, LoraTable] = {}
        self._groups: dict[LayerParts, LayerGroup] = {}
        self._sources: dict[str, _Source] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._lock = threading.RLock()

    def add(self, parts: LayerParts, x_TI: torch.Tensor, y_TO: torch.Tensor, rows: StepRows) -> None:
        """Add each row's adapter to the output of layers with the same input, in place: y += scale (x Aᵀ) Bᵀ.

        Args:
            parts: The layers, side by side. Those that none of the step's adapters changes cost nothing.
            x_TI: Their input, contiguous.
            y_TO: Their output, contiguous. Rows without an adapter stay as they are, bit for bit.
            rows: Each row's adapter.
        """
        groups = self._groups
        group = groups.get(parts)
        if group is None:
            group = groups[parts] = self._group(parts)
        if group.indices.isdisjoint(rows.indices):
            return
        if group.has_kernel and y_TO.dtype is torch.float32:
            group.add(rows.items, x_TI, y_TO)
            return
        for table, first in group.tables:
            if not table.indices.isdisjoint(rows.indices):
                add_tiles(table, rows.tiles, x_TI, y_TO[:, first : first + table.ups_MRO.shape[2]])

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
            if name in self._sources and self._sources[name].fingerprint != adapter.fingerprint:
                self._refuse_in_use(name)
                self._remove(name)
            if name not in self._residents:
                self._place(name, adapter)
            self._residents.move_to_end(name)
            self._sources[name] = _Source(folder, adapter.fingerprint)
            return self._residents[name].index

    def acquire(self, name: str) -> None:
        """One more request is in flight with an adapter, which is not replaced or forgotten until it is released.

        Raises:
            RequestError: Unknown.
        """
        with self._lock:
            self._source(name)
            self._users[name] += 1

    def release(self, name: str) -> None:
        """One request less is in flight: every `acquire` is followed by one."""
        with self._lock:
            assert self._users[name] > 0, f"adapter '{name}' is released more often than it was acquired"
            self._users[name] -= 1

    def hold(self, name: str) -> bool:
        """Keep an adapter in its place, read again if it had made room; False if others hold all places.

        Raises:
            RequestError: Unknown.
            ModelError: It had made room, and its folder is not what it was any more.
        """
        with self._lock:
            source = self._source(name)
            if name not in self._residents:
                if not self._has_room():
                    return False
                adapter = read_adapter(source.folder, self._layers)
                if adapter.fingerprint != source.fingerprint:
                    raise ModelError(f"{source.folder} has changed since adapter '{name}' was loaded: load it again")
                self._place(name, adapter)
            self._residents[name].holds += 1
            self._residents.move_to_end(name)
            return True

    def let_go(self, name: str) -> None:
        """Others may take the adapter's place: every `hold` that succeeded is followed by one."""
        with self._lock:
            resident = self._residents[name]
            assert resident.holds > 0, f"adapter '{name}' is let go more often than it was held"
            resident.holds -= 1
            self._residents.move_to_end(name)

    def index(self, name: str) -> int:
        """Place of an adapter in the tables; good for as long as it is held.

        Raises:
            RequestError: It is not in the tables.
        """
        resident = self._residents.get(name)
        if resident is None:
            self._source(name)
            raise RequestError(f"adapter '{name}' is not in memory: it has to be held first")
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
            self._refuse_in_use(name)
            self._remove(name)
            del self._sources[name]
            self._users.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that can be acquired."""
        return tuple(sorted(self._sources))

    @property
    def residents(self) -> tuple[str, ...]:
        """Those in memory, the longest idle first."""
        return tuple(self._residents)

    @property
    def requests(self) -> dict[str, int]:
        """Requests in flight by adapter, of those in memory or in use."""
        with self._lock:
            return dict.fromkeys(self._residents, 0) | {name: n for name, n in self._users.items() if n}

    @property
    def resident_bytes(self) -> int:
        """Address space of the tables. On CPUs, places that were never used take no memory."""
        return sum(table.nbytes for table in self._tables.values())

    def _group(self, parts: LayerParts) -> LayerGroup:
        found = ((self._tables.get(name), first) for name, first, _ in parts)
        return LayerGroup([(table, first) for table, first in found if table is not None], parts[-1][2])

    def _source(self, name: str) -> _Source:
        try:
            return self._sources[name]
        except KeyError:
            known = ", ".join(self.names) or "none"
            raise RequestError(f"there is no adapter '{name}'; loaded are: {known}") from None

    def _refuse_in_use(self, name: str) -> None:
        if users := self._users[name]:
            raise ModelError(f"adapter '{name}' is in use by {users} requests: wait, or take another name")

    def _has_room(self) -> bool:
        return len(self._residents) < self.max_adapters or self._longest_idle() is not None

    def _longest_idle(self) -> str | None:
        return next((name for name, resident in self._residents.items() if not resident.holds), None)

    def _place(self, name: str, adapter: Adapter) -> None:
        if len(self._residents) == self.max_adapters:
            idle = self._longest_idle()
            if idle is None:
                raise RequestError(
                    f"all {self.max_adapters} places for adapters are in use by requests, so '{name}' has to wait"
                )
            self._remove(idle)
        taken = {resident.index for resident in self._residents.values()}
        index = next(i for i in range(self.max_adapters) if i not in taken)
        for module, pair in adapter.pairs.items():
            self._tables[module] = put(self._tables.get(module), index, pair, self._kind)
        self._groups = {}  # a step that runs goes on with its own
        self._residents[name] = _Resident(index, frozenset(adapter.pairs))

    def _remove(self, name: str) -> None:
        gone = self._residents.pop(name, None)
        if gone is None:
            return
        for module in gone.modules:
            if left := take(self._tables[module], gone.index):
                self._tables[module] = left
            else:
                del self._tables[module]
        self._groups = {}
