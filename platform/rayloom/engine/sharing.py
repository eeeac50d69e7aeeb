"""Who makes room for an owner who waits while others have more slots than their share.

Taking turns as slots come free is not enough for one who asks little beside one who asks without end: where answers are
as long as each other they end together, and a request that comes just after that would wait for a whole answer of
somebody else's. So a share is not lost to those who took it in the meantime: who came last of theirs goes back to
waiting, with the tokens that it has. No tensors and no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from rayloom.engine.fairness import Account, Lane
from rayloom.engine.seating import Ticket


def find_claim(
    lanes: Seq[Lane], tickets: Mapping[int, Ticket], running: Seq[Ticket], num_free: int
) -> tuple[Ticket, list[Ticket]] | None:
    """A waiting group that is within its owner's share, and the running ones that have to go for it.

    A share is what a lane's owners have of the slots, evenly, but one slot at least. Nobody gets beyond it by a claim,
    and nobody is left with less than who claimed, so claims come to an end; an owner's first group never has to go.

    Args:
        lanes: Where groups wait, the most urgent first.
        tickets: By group id.
        running: In order.
        num_free: Slots that nobody has.
    """
    held: Counter[Account] = Counter()
    for ticket in running:
        held[ticket.account] += ticket.width
    for lane in lanes:
        if lane.num_present > 1:
            share = max(1, (num_free + sum(held[account] for account in lane.accounts.values())) // lane.num_present)
            for account in sorted(lane.accounts.values(), key=lambda account: (held[account], account.virtual_time)):
                if account.waiting and (claim := _claim(account, tickets, running, held, share, num_free)):
                    return claim
    return None


def _claim(
    account: Account,
    tickets: Mapping[int, Ticket],
    running: Seq[Ticket],
    held: Counter[Account],
    share: int,
    num_free: int,
) -> tuple[Ticket, list[Ticket]] | None:
    ticket = tickets[account.waiting[0].group_id]
    reached = held[account] + ticket.width
    if ticket.width <= num_free or reached > share:
        return None  # it fits as it is, or has to wait for its turn
    left, going, settled = held.copy(), list[Ticket](), set[Account]()
    for other in reversed(running):
        owner = other.account
        if owner.lane is not account.lane or owner in settled:
            continue
        if left[owner] - other.width < reached:
            settled.add(owner)
            continue
        left[owner] -= other.width
        num_free += other.width
        going.append(other)
        if num_free >= ticket.width:
            return ticket, going
    return None
