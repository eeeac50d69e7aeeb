"""Who waits for an adapter's place in memory, and who has to make way. No tensors and no clock.

There may be more adapters in flight than places. A group holds its adapter's place while it runs. One whose adapter
finds none waits, and those behind it go on: they need no place, or one that is held anyway. So that it does not wait
for ever, it is overtaken only so often by groups that prolong a hold; then the adapter that has had its place longest
gets no new groups, and the place that comes free is kept for the one who waits.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from rayloom.engine.request import Group, Status


class Places(Protocol):
    """Where adapters lie that are in use."""

    def hold(self, name: str) -> bool:
        """Bring an adapter into memory and keep it there; False if others hold all places."""
        ...

    def let_go(self, name: str) -> None:
        """Nobody runs with it now: its place may be given to another."""
        ...


class AdapterTurns:
    """Gives running groups' adapters their places.

    Args:
        places: None if there is one for every adapter.
        patience: How many groups may prolong others' holds while one waits.
    """

    def __init__(self, places: Places | None, patience: int) -> None:
        self._places, self._patience = places, patience
        self._held: Counter[str] = Counter()  # groups that run with each; who has been held longest comes first
        self._refused: set[str] = set()
        self._blocked: Group | None = None
        self._num_overtaken = 0

    def begin(self) -> None:
        """A step begins: all may try again."""
        self._refused.clear()
        if self._blocked is not None and self._blocked.status is not Status.WAITING:
            self._blocked = None

    def may_run(self, group: Group) -> bool:
        """Whether it was not found in this step that the group's adapter has no place."""
        return group.request.adapter not in self._refused

    def hold(self, group: Group) -> bool:
        """Keep the adapter of a waiting group in memory while it runs; False if it has to wait for a place."""
        name = group.request.adapter
        if self._places is None or name is None:
            return True
        if self._must_wait(name) or not (name in self._held or self._places.hold(name)):
            self._refused.add(name)
            if self._blocked is None:
                self._blocked, self._num_overtaken = group, 0
            return False
        self._num_overtaken += name in self._held
        self._held[name] += 1
        if group is self._blocked:
            self._blocked = None
        return True

    def let_go(self, group: Group) -> None:
        """The group runs no longer, or could not be seated."""
        name = group.request.adapter
        if self._places is None or name is None:
            return
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]
            self._places.let_go(name)

    def check(self, running: list[Group]) -> None:
        """Assert that just the running groups' adapters are held."""
        if self._places is not None:
            assert self._held == Counter(group.request.adapter for group in running if group.request.adapter)

    def _must_wait(self, name: str) -> bool:
        """Whether someone has waited so long that this adapter has to make way."""
        waiting = self._blocked
        if waiting is None or waiting.request.adapter == name or self._num_overtaken < self._patience:
            return False
        return name not in self._held or name == next(iter(self._held))
