"""Who makes room for an owner who waits while others have more slots than their share.

Taking turns as slots come free is not enough for one who asks little beside one who asks without end: where answers are
as long as each other they end together, and a request that comes just after that would wait for a whole answer of
somebody else's. So a share is not lost to those who took it in the meantime: who came last of theirs goes back to
waiting, with the tokens that it has. No tensors and no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq

from rayloom.engine.fairness import Account, Lane
from rayloom.engine.seating import Ticket


def find_claim(
    lanes: Seq[Lane], claimant: Callable[[Account], Ticket | None], running: Seq[Ticket], num_free: int
) -> tuple[Ticket, list[Ticket]] | None:
    """A waiting group that is within its owner's share, and the running ones that have to go for it.

    A share is what a lane's owners have of the slots, evenly, but one slot at least. Nobody gets beyond it by a claim,
    and nobody is left with less than who claimed, so claims come to an end; an owner's first group never has to go.
    Slots that nobody has are not counted where somebody more urgent waits for them.

    Args:
        lanes: Where groups wait, the most urgent first.
        claimant: Which of an owner's waiting groups would run next; None if none could.
        running: In order.
        num_free: Slots that nobody has.
    """
    held: Counter[Account] = Counter()
    for each in running:
        held[each.account] += each.width
    usable = num_free
    for lane in lanes:
        waiting = [account for account in lane.accounts.values() if account.waiting]
        share = max(1, (usable + sum(held[account] for account in lane.accounts.values())) // lane.num_present)
        if any(held[account] > share for account in lane.accounts.values()):  # else what is within a share fits
            for account in sorted(waiting, key=lambda account: (held[account], account.virtual_time)):
                ticket = claimant(account)
                # One that fits without anybody's going waits for its turn.
                if ticket is not None and num_free < ticket.width <= share - held[account]:
                    rivals = [each for each in running if each.account.lane is lane]
                    going = _going(ticket, rivals, held, share, usable)
                    if going:
                        return ticket, going
        usable = 0 if waiting else usable
    return None


def _going(ticket: Ticket, running: Seq[Ticket], held: Counter[Account], share: int, num_free: int) -> list[Ticket]:
    """Groups that make room, the last first; none if that would not do.

    Those come first whose owners keep a share. Where groups are so wide that this does not suffice, it may also be
    one of an owner who then has less, but as much as who claims.
    """
    left, going = held.copy(), list[Ticket]()
    for least in (share, held[ticket.account] + ticket.width):
        settled = set[Account]()
        for other in reversed(running):
            owner = other.account
            if owner in settled or other in going:
                continue
            if left[owner] - other.width < least:
                settled.add(owner)
                continue
            left[owner] -= other.width
            num_free += other.width
            going.append(other)
            if num_free >= ticket.width:
                return going
    return []
