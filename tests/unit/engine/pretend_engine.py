"""An engine without a model: it drives a scheduler as the real one does, and checks all that it sees.

Its cache holds, for every token, a digest of the whole head up to there, made from the digest before it in the cache,
as keys and values are. A block that was shared, copied, evicted or recomputed wrongly gives a wrong digest.
"""

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from rayloom.engine.blocks import BLOCK, blocks_for
from rayloom.engine.plan import Limits, Plan, Span
from rayloom.engine.request import EngineRequest, Group, Params, Sequence, Status
from rayloom.engine.scheduler import Scheduler

NO_DIGEST = 0


def make_request(
    prompt: Seq[int], *, new: int = 8, answers: int = 1, beams: int = 1, encoder: Seq[int] = (), **fields: object
) -> EngineRequest:
    params = Params(max_new_tokens=new, num_return_sequences=answers, num_beams=beams)
    return EngineRequest(start_ids=tuple(prompt), encoder_ids=tuple(encoder), params=params, **fields)  # type: ignore[arg-type]


@dataclass
class Watch:
    """What is noted of one group."""

    group: Group
    added_at: int
    admitted_at: int | None = None
    finished_at: int | None = None
    starts: list[int] = field(default_factory=list)


class PretendPlaces:
    """Places for adapters, without adapters.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count, self.num_loaded = count, 0
        self.residents: list[str] = []
        self.held: set[str] = set()

    def hold(self, name: str) -> bool:
        assert name not in self.held
        if name not in self.residents:
            if len(self.held) == self.count:
                return False
            if len(self.residents) == self.count:
                self.residents.remove(next(other for other in self.residents if other not in self.held))
            self.residents.append(name)
            self.num_loaded += 1
        self.held.add(name)
        return True

    def let_go(self, name: str) -> None:
        self.held.remove(name)


class PretendEngine:
    """Steps a scheduler; tokens, forks and ends are drawn at random.

    Args:
        limits: The scheduler's.
        seed: Of all draws.
        stop_rate: How often a sequence ends before its maximal length.
        thorough: Check every digest and all invariants in every step, not in some.
        num_places: For adapters; None if there is one for every adapter.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        seed: int = 0,
        stop_rate: float = 0.05,
        thorough: bool = True,
        prefix_cache: bool = True,
        num_token_ids: int = 3,
        num_places: int | None = None,
    ) -> None:
        self.places = None if num_places is None else PretendPlaces(num_places)
        self.limits, self.scheduler = limits, Scheduler(limits, prefix_cache=prefix_cache, places=self.places)
        self.draw = random.Random(seed)
        self.live: dict[int, Watch] = {}
        self.num_steps = self.num_preempted = self.num_copied = self.num_encoded = self.num_read = 0
        self._stop_rate, self._thorough, self._num_token_ids = stop_rate, thorough, num_token_ids
        self._cells = [[NO_DIGEST] * BLOCK for _ in range(limits.num_blocks)]
        self._rows: dict[int, list[int]] = {}
        self._layers_read: dict[int, int] = {}
        self._next_id = 0

    def add(self, request: EngineRequest) -> Watch:
        group = Group(self._next_id, request, arrival=float(self.num_steps))
        self.scheduler.add(group)
        self._next_id += 1
        self.live[group.group_id] = watch = Watch(group, self.num_steps)
        return watch

    def cancel(self, group_id: int) -> None:
        self.scheduler.cancel(self._retire(group_id))

    def run(self, max_steps: int = 10_000) -> None:
        """Until all are done."""
        end = self.num_steps + max_steps
        while self.live:
            assert self.num_steps < end, "it does not end"
            self.step()

    def step(self) -> Plan:
        before = self._running()
        plan = self.scheduler.schedule()
        self._check_plan(plan, before)
        self._compute(plan)
        self.scheduler.computed(plan)
        self._postprocess(plan)
        self.num_steps += 1
        if self._thorough or self.draw.random() < 0.05:
            self.scheduler.check()
        return plan

    def _retire(self, group_id: int) -> Group:
        watch = self.live.pop(group_id)
        watch.finished_at = self.num_steps
        return watch.group

    def _running(self) -> list[Group]:
        groups = [watch.group for watch in self.live.values() if watch.group.status is Status.RUNNING]
        return sorted(groups, key=_order)

    # What a plan must keep to

    def _check_plan(self, plan: Plan, before: list[Group]) -> None:
        for group in plan.admitted:
            watch = self.live[group.group_id]
            watch.admitted_at = self.num_steps if watch.admitted_at is None else watch.admitted_at
            assert group.status is Status.RUNNING, "its rows are filled, so it has slots"
            for sequence in group.sequences:
                self._rows[sequence.slot] = list(sequence.tokens)
        for span in plan.spans:
            self.live[span.group.group_id].starts.append(span.start)
        spans = _by_group(plan)
        assert bool(spans) == bool(self.live), "there is work, so something is computed"
        self._check_order(plan, before, spans)
        self._check_budget(plan, before, spans)
        if self.places is not None:
            assert {g.request.adapter for g in self._running()} - {None} == self.places.held
        for own in spans.values():
            _check_group(own)
        places = [self._place(span.sequence, at) for span in plan.spans for at in _positions(span)]
        assert len(places) == len(set(places)), "two sequences write to one place"

    def _check_order(self, plan: Plan, before: list[Group], spans: dict[int, list[Span]]) -> None:
        left = [group for group in before if group not in plan.preempted]
        if plan.preempted and plan.admitted:
            _check_shares(plan, before)
            left = sorted([*left, *plan.admitted], key=_order)
        else:
            assert before == left + sorted(plan.preempted, key=_order), "the last in order are preempted"
        assert not before or before[0] in left, "the first is never stopped"
        assert not left or left[0].group_id in spans or (plan.reading and plan.reading.group is left[0])
        for group in plan.preempted:
            if group in plan.admitted:
                continue  # of several that made room, the smallest may find some again
            assert group.group_id not in spans
            assert group.status is Status.WAITING

    def _check_budget(self, plan: Plan, before: list[Group], spans: dict[int, list[Span]]) -> None:
        decoding = {group.group_id for group in before if group.status is Status.RUNNING and _decodes(group, plan)}
        assert decoding <= spans.keys(), "a running answer is continued in every step"
        prompts = spans.keys() - decoding
        num_decoded = sum(len(spans[key]) for key in decoding)
        num_prompt = plan.num_tokens - num_decoded + sum(len(group.request.encoder_ids) for group in plan.encode)
        num_prompt += self._check_reading(plan, beside_answers=bool(decoding))
        if (plan.encode or plan.reading) and len(prompts) <= 1:
            return  # a prompt that cannot be cut goes alone
        assert num_prompt + num_decoded <= self.limits.max_step_tokens
        assert not decoding or num_prompt <= self.limits.max_prefill_tokens

    def _check_reading(self, plan: Plan, *, beside_answers: bool) -> int:
        """Tokens, through all layers, that the reading of a long prompt amounts to."""
        if plan.reading is None:
            return 0
        (group, first, end), num_layers = plan.reading, self.limits.encoder_layers
        num_tokens = len(group.request.encoder_ids)
        assert group not in plan.encode
        assert 0 <= first < end <= num_layers
        if beside_answers and end - first > 1:
            assert num_tokens * (end - first) <= self.limits.max_prefill_tokens * num_layers
        return -(-num_tokens * (end - first) // num_layers)

    # What a runner does

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.blocks[position // BLOCK], position % BLOCK

    def _compute(self, plan: Plan) -> None:
        contents = [list(self._cells[source]) for source, _ in plan.copies]
        for (_, target), content in zip(plan.copies, contents, strict=True):
            self._cells[target] = content
        self.num_copied += len(plan.copies)
        self.num_preempted += len(plan.preempted)
        self.num_encoded += len(plan.encode)
        for group in (*plan.encode, *self._read(plan)):
            assert not group.encoded
            for place, block in enumerate(group.cross_blocks):
                self._cells[block] = [hash((_seed(group), place))] * BLOCK
        for span in plan.spans:
            self._compute_span(span)
        for span in plan.spans:
            if self._thorough or span.length > 1 or self.draw.random() < 0.1:
                self._check_digests(span)

    def _read(self, plan: Plan) -> list[Group]:
        """Take a long prompt through some layers; the prompt if these were the last."""
        for group in plan.preempted:
            self._layers_read.pop(group.group_id, None)
        if plan.reading is None:
            return []
        group, first, end = plan.reading
        assert first == self._layers_read.pop(group.group_id, 0), "every layer is computed once"
        self.num_read += 1
        if end == self.limits.encoder_layers:
            return [group]
        self._layers_read[group.group_id] = end
        return []

    def _compute_span(self, span: Span) -> None:
        digest = _seed(span.group)
        if span.start:
            block, place = self._place(span.sequence, span.start - 1)
            digest = self._cells[block][place]
        for position in _positions(span):
            digest = hash((digest, span.sequence.tokens[position]))
            block, place = self._place(span.sequence, position)
            self._cells[block][place] = digest

    def _check_digests(self, span: Span) -> None:
        digest = _seed(span.group)
        for position in range(span.start + span.length):
            digest = hash((digest, span.sequence.tokens[position]))
            block, place = self._place(span.sequence, position)
            assert self._cells[block][place] == digest, "a token's keys are not those of its head"
        assert len(span.group.cross_blocks) == blocks_for(len(span.group.request.encoder_ids))
        for place, block in enumerate(span.group.cross_blocks):
            assert self._cells[block][0] == hash((_seed(span.group), place))

    # What a selector does

    def _postprocess(self, plan: Plan) -> None:
        for spans in _by_group(plan).values():
            group = spans[0].group
            if not spans[0].wants_logits:
                continue
            for sequence in group.sequences:
                assert self._rows[sequence.slot] == sequence.tokens, "the row of a slot follows its sequence"
            if group.request.params.is_beam:
                self._fork(group, self._beam_parents(group))
            elif len(group.sequences) == 1 and len(group.sequences[0].tokens) == len(group.request.start_ids):
                self._fork(group, [0] * group.request.params.num_sequences)
            self._append(group)

    def _beam_parents(self, group: Group) -> list[int]:
        width = group.request.params.num_beams
        count = width if self.draw.random() < 0.8 else self.draw.randint(1, width)
        return [self.draw.randrange(len(group.sequences)) for _ in range(count)]

    def _append(self, group: Group) -> None:
        going_on = []
        for place, sequence in enumerate(group.sequences):
            token = self.draw.randrange(self._num_token_ids)
            sequence.tokens.append(token)
            self._rows[sequence.slot].append(token)
            is_done = len(sequence.tokens) >= group.request.max_length
            if not is_done and (group.request.params.is_beam or self.draw.random() >= self._stop_rate):
                going_on.append(place)
        if not going_on or (group.request.params.is_beam and self.draw.random() < self._stop_rate):
            self.scheduler.finish(self._retire(group.group_id))
        elif len(going_on) < len(group.sequences):
            self._fork(group, going_on)

    def _fork(self, group: Group, parents: list[int]) -> None:
        old = group.sequences
        copies = self.scheduler.fork(group, parents)
        rows = {target: list(self._rows[source]) for target, source in copies}
        assert not {target for target, _ in copies} & {source for _, source in copies}
        self._rows.update(rows)
        assert [child.tokens for child in group.sequences] == [old[parent].tokens for parent in parents]
        renumber = group.request.params.is_beam or len(parents) > len(old)
        expected = list(range(len(parents))) if renumber else [old[parent].index for parent in parents]
        assert [child.index for child in group.sequences] == expected


def _seed(group: Group) -> int:
    return hash((group.request.adapter, group.request.encoder_ids))


def _order(group: Group) -> tuple[int, int]:
    return group.request.priority, group.group_id


def _check_shares(plan: Plan, before: list[Group]) -> None:
    """Some made room for others who had less: their owners keep what came first."""
    going = {_lane(group) for group in plan.preempted if group in before}
    assert {_lane(group) for group in plan.admitted} - going, "somebody else gets what they had"
    for owner in going:
        theirs = [group for group in before if _lane(group) == owner]
        gone = [group for group in theirs if group in plan.preempted]
        assert len(gone) < len(theirs)
        assert theirs[-len(gone) :] == gone, "who came last goes first"


def _lane(group: Group) -> tuple[int, str]:
    return group.request.priority, group.request.owner


def _decodes(group: Group, plan: Plan) -> bool:
    """Whether the group had nothing but its sequences' last tokens to compute."""
    is_encoded = group.encoded or not group.request.encoder_ids
    return is_encoded and group not in plan.encode and all(sequence.remain_len == 1 for sequence in group.sequences)


def _positions(span: Span) -> range:
    return range(span.start, span.start + span.length)


def _by_group(plan: Plan) -> dict[int, list[Span]]:
    spans: dict[int, list[Span]] = {}
    for span in plan.spans:
        spans.setdefault(span.group.group_id, []).append(span)
    return spans


def _check_group(spans: list[Span]) -> None:
    """Logits for all of a group's sequences in one step, or for none."""
    group = spans[0].group
    wanted = [span.sequence for span in spans if span.wants_logits]
    assert wanted in ([], group.sequences)
    for span in spans:
        assert span.start == span.sequence.num_computed
        assert span.length >= 1
        assert (span.start + span.length == len(span.sequence.tokens)) == span.wants_logits
