"""Which sequences compute which tokens in the next step.

Groups join and leave between steps (Orca: Yu et al. 2022); running answers come first and prompts fill what is left of
a step's tokens, in pieces (Sarathi-Serve: Agrawal et al. 2024, arXiv:2403.02310); forks share blocks until one of them
writes (PagedAttention: Kwon et al. 2023, arXiv:2309.06180). No tensors and no clock: plans follow from what was asked.

Why everybody gets on: running groups have a fixed order (priority, then arrival). Whoever needs a block may take it
from the last in order, so the first is never stopped; who came last of an owner's makes room for one who waits for its
share (see `sharing`), which leaves every owner the first; generated tokens survive preemption; and a group that would
not fit into an empty pool is refused at the door.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from rayloom.engine.adapter_turns import AdapterTurns, Places
from rayloom.engine.blocks import BLOCK, blocks_for
from rayloom.engine.fairness import Account, WaitingQueue
from rayloom.engine.plan import Limits, Plan, Reading, Span
from rayloom.engine.request import Group, Sequence, Status
from rayloom.engine.seating import Seating, Ticket
from rayloom.engine.sharing import find_claim
from rayloom.errors import RequestError

__all__ = ["Limits", "Plan", "Scheduler", "Span"]


def _order(ticket: Ticket) -> tuple[int, int]:
    return ticket.group.request.priority, ticket.group.group_id


@dataclass(eq=False, slots=True)
class _Step:
    """A plan being made. `prompts` are running groups that have to encode, or are behind with their tokens."""

    encode: list[Group] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Group] = field(default_factory=list)
    admitted: list[Group] = field(default_factory=list)
    prompts: list[Ticket] = field(default_factory=list)
    reading: Reading | None = None
    has_prompt: bool = False

    def plan(self) -> Plan:
        return Plan(
            encode=tuple(self.encode),
            spans=tuple(self.spans),
            copies=tuple(self.copies),
            preempted=tuple(self.preempted),
            admitted=tuple(self.admitted),
            reading=self.reading,
        )


class Scheduler:
    """Admits, schedules, preempts and forgets groups. One thread at a time.

    A step is ``plan = schedule()``, computing it, ``computed(plan)``; then the engine appends tokens and calls
    `fork` and `finish`. `finish` and `cancel` may also come between `schedule` and `computed`.

    Args:
        limits: What fits.
        prefix_cache: Whether full blocks (of causal models) and encoder prompts are kept for requests with equal heads.
        places: For adapters of running groups; None if there is one for every adapter.

    Attributes:
        num_preempted: How often a group had to make room.
    """

    def __init__(self, limits: Limits, *, prefix_cache: bool = True, places: Places | None = None) -> None:
        self.limits = limits
        self._seating = Seating(limits, prefix_cache=prefix_cache)
        self._tickets: dict[int, Ticket] = {}
        self._waiting = WaitingQueue()
        self._turns = AdapterTurns(places, patience=limits.max_sequences)
        self._running: list[Ticket] = []
        self.num_preempted = 0

    @property
    def num_waiting(self) -> int:
        """Groups that wait for room."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Groups that hold slots and blocks."""
        return len(self._running)

    @property
    def num_free_slots(self) -> int:
        """Slots that no running group has."""
        return self._seating.num_free_slots

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no running group has, cached ones included."""
        return self._seating.pool.num_free

    @property
    def num_matched_tokens(self) -> int:
        """Tokens, encoder's included, that nobody had to compute because the cache had them."""
        return self._seating.num_matched_tokens

    def counts(self) -> dict[str, int]:
        """Figures of `EngineStats` that are known here."""
        seating = self._seating
        return {
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "num_used_blocks": self.limits.num_blocks - self.num_free_blocks,
            "num_idle_blocks": seating.pool.num_idle,
            "num_seated_tokens": seating.num_seated_tokens,
            "num_matched_tokens": seating.num_matched_tokens,
            "num_preempted": self.num_preempted,
        }

    def add(self, group: Group) -> None:
        """Let a group wait for its turn. It gets its first sequence if it has none.

        Raises:
            RequestError: It could never run: too many sequences, or more tokens than the whole cache holds.
        """
        request, limits, width = group.request, self.limits, group.request.params.num_sequences
        assert group.status is Status.WAITING
        assert group.group_id not in self._tickets
        if width > limits.max_sequences:
            raise RequestError(
                f"the request needs {width} sequences at once (beams or answers); the engine runs "
                f"{limits.max_sequences}"
            )
        num_blocks = width * blocks_for(request.max_length) + blocks_for(len(request.encoder_ids))
        if num_blocks > limits.num_blocks:
            raise RequestError(
                f"the request may need {num_blocks * BLOCK} tokens of cache (prompt and max_new_tokens, for every "
                f"beam or answer); the engine has {limits.num_blocks * BLOCK}"
            )
        if not group.sequences:
            group.sequences = [Sequence(index=0, tokens=list(request.start_ids))]
        self._tickets[group.group_id] = Ticket(group, self._waiting.enter(group), width)

    def finish(self, group: Group) -> None:
        """Free all that a group has. Nothing happens if it is gone already."""
        ticket = self._tickets.pop(group.group_id, None)
        if ticket is None:
            return
        if group.status is Status.RUNNING:
            self._running.remove(ticket)
            self._vacate(ticket)
        else:
            self._waiting.remove(ticket.account, group)
        self._waiting.leave(ticket.account, group)
        group.status = Status.FINISHED

    def cancel(self, group: Group) -> None:
        """The caller has gone: free everything now, waiting or running."""
        self.finish(group)

    def forget_adapter(self, adapter: str | None) -> None:
        """An adapter's weights have changed: what it computed is never matched again. No live group may use it."""
        self._seating.pool.forget(adapter)

    def schedule(self) -> Plan:
        """Decide the next step. Every sequence of a running group has at least one token to compute."""
        step = _Step()
        self._turns.begin()
        self._share(step)
        num_displaced = len(step.preempted)
        num_decoded = self._decode(step)
        budget = self.limits.max_step_tokens - num_decoded
        if num_decoded:
            budget = min(budget, self.limits.max_prefill_tokens)
        for ticket in step.prompts:
            if budget > 0 and ticket.group.status is Status.RUNNING:
                budget -= self._prefill(ticket, step, budget)
        if len(step.preempted) == num_displaced:
            self._admit(step, budget)
        return step.plan()

    def computed(self, plan: Plan) -> None:
        """The step was computed: its tokens are in the cache, and full blocks are offered to others."""
        encoded, reading = plan.encode, plan.reading
        if reading is not None and reading.group.status is Status.RUNNING:
            reading.group.layers_read = reading.end
            encoded += (reading.group,) if reading.end == self.limits.encoder_layers else ()
        for group in encoded:
            if group.status is Status.RUNNING:
                group.encoded = True
                self._seating.register_prompt(group)
        for group, sequence, start, length, _ in plan.spans:
            if group.status is Status.RUNNING:
                sequence.num_computed = end = start + length
                if start // BLOCK < end // BLOCK:
                    self._seating.register(group, sequence, start, end)

    def fork(self, group: Group, parents: Seq[int]) -> list[tuple[int, int]]:
        """Replace a running group's sequences by copies of some of them.

        The first child of a parent keeps its slot and blocks; further ones share the blocks; a parent without child is
        freed. Children have their own tokens and log-probabilities, and refer to their parent's constraints: forking
        those is the caller's. ``index`` becomes the place in the list for beams and where the group grows; else it is
        the parent's. Where a group without beams shrinks, it gives back the slots, and cannot grow again.

        Args:
            group: A running group.
            parents: For every new sequence, the place of the old one that it continues. Not empty.

        Returns:
            (target slot, source slot) of every child that has a new slot; no target is a source.
        """
        assert group.status is Status.RUNNING
        return self._seating.fork(self._tickets[group.group_id], parents)

    def check(self) -> None:
        """Assert that blocks, slots and orders are right. For tests and debugging: it looks at everything."""
        self._seating.check(self._tickets.values())
        running = [ticket for ticket in self._tickets.values() if ticket.group.status is Status.RUNNING]
        assert self._running == sorted(running, key=_order)
        self._turns.check([ticket.group for ticket in running])
        assert len(self._running) + len(self._waiting) == len(self._tickets)

    def _decode(self, step: _Step) -> int:
        """Schedule groups with one token to compute per sequence. Returns how many tokens these are."""
        running, seating, spans, place = self._running, self._seating, step.spans, 0
        while place < len(running):  # its end comes nearer when groups are preempted
            ticket = running[place]
            place += 1
            group = ticket.group
            sequences = group.sequences
            if (group.cross_blocks and not group.encoded) or _is_behind(sequences):
                step.prompts.append(ticket)
            elif self._make_room(ticket, seating.num_missing(sequences), step):
                for sequence in sequences:
                    seating.claim(sequence, step.copies)
                    spans.append(Span(group, sequence, sequence.num_computed, 1, True))
                ticket.account.charge(len(sequences))
        return len(spans)

    def _make_room(self, ticket: Ticket, num_blocks: int, step: _Step) -> bool:
        """Preempt from the end of the order until so many blocks are free. False if that hits the group itself."""
        while num_blocks > self._seating.pool.num_free:
            victim = self._running.pop()
            self._displace(victim, step)
            if victim is ticket:
                return False
        return True

    def _prefill(self, ticket: Ticket, step: _Step, budget: int) -> int:
        """Schedule as much of a group's prompt, or of what it lost, as the budget allows. Returns tokens taken."""
        group, num_encoded = ticket.group, 0
        if group.request.encoder_ids and not group.encoded:
            num_encoded = len(group.request.encoder_ids)
            if step.has_prompt and (group.layers_read or num_encoded + len(group.sequences) > budget):
                return budget  # later groups wait too, so that soon it is the first and goes whatever its length
            num_encoded = self._encode(group, step, budget)
            if step.reading is not None and step.reading.end < self.limits.encoder_layers:
                step.has_prompt = True
                ticket.account.charge(num_encoded)
                return budget
            # With a token for each sequence there is one to compute at least, whatever the encoder takes.
            budget = max(budget - num_encoded, len(group.sequences))
        self._seating.match_late(group)
        num_tokens = num_encoded + _chunk(group, step.spans, budget)
        step.has_prompt = True
        ticket.account.charge(num_tokens)
        return num_tokens

    def _encode(self, group: Group, step: _Step, budget: int) -> int:
        """Read an encoder prompt: all of it, or as many layers as running answers can wait for.

        Returns:
            What that takes, as tokens through all layers.
        """
        num_tokens, num_layers, first = len(group.request.encoder_ids), self.limits.encoder_layers, group.layers_read
        end = num_layers
        if step.spans and num_tokens > budget:
            end = min(end, first + max(1, budget * num_layers // num_tokens))
        if first or end < num_layers:
            step.reading = Reading(group, first, end)
        else:
            step.encode.append(group)
        return -(-num_tokens * (end - first) // num_layers)

    def _admit(self, step: _Step, budget: int) -> None:
        """Let waiting groups run, in order.

        One that does not fit holds up those behind it, until its turn comes. One whose adapter has no place does not:
        see `adapter_turns`.
        """
        while budget > 0 and self._seating.num_free_slots:
            group = self._waiting.first(self._turns.may_run)
            if group is None:
                return
            if not self._turns.hold(group):
                continue
            ticket = self._tickets[group.group_id]
            if not self._seating.seat(ticket):
                self._turns.let_go(group)
                return
            self._start(ticket, step)
            budget -= self._prefill(ticket, step, budget)

    def _share(self, step: _Step) -> None:
        """Seat those who wait while others have more slots than their share, in place of those others' last."""
        while len(self._waiting) and (
            claim := find_claim(self._waiting.lanes, self._claimant, self._running, self.num_free_slots)
        ):
            ticket, going = claim
            if not self._turns.hold(ticket.group):
                continue  # none with that adapter is a claimant any more in this step
            for other in going:
                self._running.remove(other)
                self._displace(other, step)
            seated = self._seating.seat(ticket)
            assert seated
            self._start(ticket, step)

    def _claimant(self, account: Account) -> Ticket | None:
        """An owner's next group that may run, if its size is there in blocks: nobody makes room for nothing."""
        group = next(filter(self._turns.may_run, account.waiting), None)
        ticket = None if group is None else self._tickets[group.group_id]
        return ticket if ticket and self._seating.most_blocks(ticket) <= self.num_free_blocks else None

    def _start(self, ticket: Ticket, step: _Step) -> None:
        self._waiting.remove(ticket.account, ticket.group)
        ticket.group.status = Status.RUNNING
        insort(self._running, ticket, key=_order)
        step.admitted.append(ticket.group)

    def _displace(self, victim: Ticket, step: _Step) -> None:
        """A group that ran waits again."""
        self._vacate(victim)
        if victim.group in step.admitted:
            step.admitted.remove(victim.group)  # in this very step: it has no slot any more
        victim.group.status = Status.WAITING
        self._waiting.push(victim.account, victim.group)
        step.preempted.append(victim.group)
        self.num_preempted += 1

    def _vacate(self, ticket: Ticket) -> None:
        self._seating.vacate(ticket)
        self._turns.let_go(ticket.group)


def _is_behind(sequences: Seq[Sequence]) -> bool:
    """Whether any has more to compute than the token that it was given last."""
    return any(len(sequence.tokens) - sequence.num_computed != 1 for sequence in sequences)


def _chunk(group: Group, spans: list[Span], budget: int) -> int:
    """Plan all that is left of a group's sequences; or if that is too much, no sequence's last token."""
    num_left = sum(sequence.remain_len for sequence in group.sequences)
    is_all = num_left <= budget
    taken = 0
    for sequence in group.sequences:
        length = sequence.remain_len if is_all else min(sequence.remain_len - 1, budget - taken)
        if length:
            spans.append(Span(group, sequence, sequence.num_computed, length, is_all))
            taken += length
    return taken
