"""Whose turn it is: the order in which waiting groups are admitted.

Lower priorities go strictly first. Within one, owners take turns by start-time fair queueing (Goyal et al. 1996),
charged with tokens as they are scheduled, because nobody knows an answer's length before (virtual token counters: Sheng
et al. 2024, arXiv:2401.00588). An owner who was away starts at the lane's clock, so absence earns no credit. The clock
is the fluid server's of weighted fair queueing (Demers et al. 1989): it advances by tokens served over owners present.
Were it only the start tag in service, an endless stream of new owners would hold it still and starve the old ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field

from rayloom.engine.request import Group

_SWEEP = 64


def _arrival(group: Group) -> int:
    return group.group_id


@dataclass(eq=False, slots=True)
class Account:
    """What one owner has received in one lane.

    Attributes:
        virtual_time: Tokens scheduled for the owner, counted from where the lane's clock stood when it came.
        num_live: Its groups that wait or run.
        waiting: Those that wait, by arrival.
    """

    lane: Lane
    owner: str
    virtual_time: float
    num_live: int = 0
    waiting: list[Group] = field(default_factory=list)

    def charge(self, num_tokens: int) -> None:
        """Tokens were scheduled for this owner."""
        self.virtual_time += num_tokens
        self.lane.clock += num_tokens / self.lane.num_present


@dataclass(eq=False, slots=True)
class Lane:
    """Owners of one priority. It lives as long as one of them has a group in flight."""

    accounts: dict[str, Account] = field(default_factory=dict)
    clock: float = 0.0
    num_present: int = 0
    sweep_at: int = _SWEEP

    def enter(self, owner: str) -> Account:
        """One more group of this owner."""
        account = self.accounts.get(owner)
        if account is None:
            account = self.accounts[owner] = Account(self, owner, self.clock)
        if account.num_live == 0:
            account.virtual_time = max(account.virtual_time, self.clock)
            self.num_present += 1
        account.num_live += 1
        return account

    def leave(self, account: Account) -> None:
        """One group less. Who received more than the clock says stays on the books until it has caught up."""
        account.num_live -= 1
        if account.num_live == 0:
            self.num_present -= 1
            if len(self.accounts) > self.sweep_at:
                kept = (a for a in self.accounts.values() if a.num_live or a.virtual_time > self.clock)
                self.accounts = {a.owner: a for a in kept}
                self.sweep_at = 2 * len(self.accounts) + _SWEEP

    def first(self, may_run: Callable[[Group], bool]) -> Group | None:
        """The waiting group whose turn it is, of those that may run."""
        heads = ((account, next(filter(may_run, account.waiting), None)) for account in self.accounts.values())
        turns = [(account.virtual_time, group.group_id, group) for account, group in heads if group is not None]
        return min(turns)[2] if turns else None


class WaitingQueue:
    """Groups that wait, in the order in which they will be admitted."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def enter(self, group: Group) -> Account:
        """A new group, waiting. Keep the account: `charge` it, and hand it back to the other methods."""
        request = group.request
        account = self._lanes.setdefault(request.priority, Lane()).enter(request.owner)
        self.push(account, group)
        return account

    def push(self, account: Account, group: Group) -> None:
        """The group waits (again); it stands before later ones of its owner."""
        insort(account.waiting, group, key=_arrival)
        self._num_waiting += 1

    def remove(self, account: Account, group: Group) -> None:
        """The group waits no longer."""
        place = bisect_left(account.waiting, group.group_id, key=_arrival)
        assert account.waiting[place] is group
        del account.waiting[place]
        self._num_waiting -= 1

    def leave(self, account: Account, group: Group) -> None:
        """The group, not waiting now, is gone."""
        lane = account.lane
        lane.leave(account)
        if lane.num_present == 0:
            # The busy period ends: everybody starts equal in the next.
            del self._lanes[group.request.priority]

    @property
    def lanes(self) -> list[Lane]:
        """Those of every priority, the most urgent first."""
        return [self._lanes[priority] for priority in sorted(self._lanes)]

    def first(self, may_run: Callable[[Group], bool]) -> Group | None:
        """The group to be admitted next, of those that may run."""
        if self._num_waiting == 0:
            return None
        for lane in self.lanes:
            group = lane.first(may_run)
            if group is not None:
                return group
        return None
