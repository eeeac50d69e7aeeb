"""The scheduler without a model: a state machine that checks every step, and what callers may count on."""

import contextlib
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rayloom.engine.blocks import BLOCK
from rayloom.engine.plan import Limits
from rayloom.engine.request import EngineRequest, Group, Status
from rayloom.engine.scheduler import Scheduler
from rayloom.errors import RequestError
from tests.unit.engine.pretend_engine import PretendEngine, make_request


def draw_request(draw: random.Random, *, seq2seq: bool, longest: int = 60) -> EngineRequest:
    """Prompts that share heads; answers that outgrow what they were admitted with."""
    head = [draw.randrange(2)] * (BLOCK * draw.randint(0, 2))
    prompt = head + [draw.randrange(2) for _ in range(draw.randint(1, longest - len(head)))]
    kind = draw.choice(["one", "one", "answers", "beams"])
    return make_request(
        [0] * draw.randint(1, 3) if seq2seq else prompt,
        encoder=prompt if seq2seq else (),
        new=draw.choice([draw.randint(1, 20), draw.randint(20, 140)]),
        answers=draw.randint(2, 4) if kind == "answers" else 1,
        beams=draw.randint(2, 4) if kind == "beams" else 1,
        adapter=draw.choice([None, None, "a", "a", "b", "c"]),
        priority=draw.choice([0, 0, 0, 1, -1]),
        owner=draw.choice("xyz"),
    )


def draw_limits(draw: random.Random) -> Limits:
    return Limits(
        num_blocks=draw.choice([10, 20, 40, 40, 300]),
        max_sequences=draw.randint(4, 12),
        max_step_tokens=draw.choice([12, 20, 64, 200]),
        max_prefill_tokens=draw.choice([1, 5, 16, 50]),
        encoder_layers=draw.choice([1, 1, 3, 12]),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests, cancels and steps; the pretended engine checks plans, contents and books."""

    @initialize(seed=st.integers(0, 2**32), seq2seq=st.booleans(), prefix_cache=st.booleans())
    def open(self, seed: int, seq2seq: bool, prefix_cache: bool) -> None:
        self.seq2seq = seq2seq
        draw = random.Random(seed)
        limits, stop_rate = draw_limits(draw), draw.choice([0.0, 0.0, 0.01, 0.1])
        num_places = draw.choice([None, 1, 2])
        self.engine = PretendEngine(
            limits, seed=seed, stop_rate=stop_rate, prefix_cache=prefix_cache, num_places=num_places
        )

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 8))
    def add(self, seed: int, count: int) -> None:
        draw = random.Random(seed)
        for _ in range(count):
            with contextlib.suppress(RequestError):
                self.engine.add(draw_request(draw, seq2seq=self.seq2seq))

    @rule(count=st.integers(1, 30))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.engine.live)
    @rule(choice=st.integers(0, 1000))
    def cancel(self, choice: int) -> None:
        live = sorted(self.engine.live)
        self.engine.cancel(live[choice % len(live)])

    @precondition(lambda self: self.engine.live)
    @rule()
    def cancel_all_running(self) -> None:
        for key, watch in list(self.engine.live.items()):
            if watch.group.status is Status.RUNNING:
                self.engine.cancel(key)

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.run()
            assert_empty(self.engine.scheduler)


SchedulerMachine.TestCase.settings = settings(
    max_examples=35, stateful_step_count=20, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase


def assert_empty(scheduler: Scheduler) -> None:
    scheduler.check()
    assert (scheduler.num_waiting, scheduler.num_running) == (0, 0)
    assert scheduler.num_free_slots == scheduler.limits.max_sequences
    assert scheduler.num_free_blocks == scheduler.limits.num_blocks


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("seq2seq", [False, True])
def test_small_pools_preempt_and_everybody_finishes(seed: int, seq2seq: bool) -> None:
    draw = random.Random(seed)
    limits = Limits(num_blocks=36, max_sequences=32, max_step_tokens=40, max_prefill_tokens=16)
    engine = PretendEngine(limits, seed=seed, stop_rate=0.0)
    watches = []
    for _ in range(16):
        prompt = [draw.randrange(2) for _ in range(draw.randint(1, 30))]
        kind = draw.choice(["answers", "answers", "beams"])
        fields = {kind: draw.randint(1, 4), "new": draw.randint(50, 90)}
        watches.append(
            engine.add(make_request([0] if seq2seq else prompt, encoder=prompt if seq2seq else (), **fields))
        )
    engine.run()
    assert engine.num_preempted > 0
    for watch in watches:
        assert watch.group.status is Status.FINISHED
        answers = watch.group.sequences
        assert max(len(answer.tokens) for answer in answers) == watch.group.request.max_length
    assert_empty(engine.scheduler)


def test_a_group_that_fills_the_whole_pool_runs() -> None:
    limits = Limits(num_blocks=8, max_sequences=4, max_step_tokens=8)
    engine = PretendEngine(limits, stop_rate=0.0)
    whole = engine.add(make_request([1] * 17, new=2 * BLOCK - 17, answers=4))
    other = engine.add(make_request([1] * 17, new=2 * BLOCK - 17, beams=4))
    engine.run()
    assert whole.group.status is other.group.status is Status.FINISHED
    with pytest.raises(RequestError, match="tokens of cache"):
        engine.add(make_request([1] * 17, new=2 * BLOCK - 16, answers=4))
    with pytest.raises(RequestError, match="5 sequences"):
        engine.add(make_request([1], new=1, beams=5))
    assert not engine.live


def test_a_repeated_prompt_is_computed_from_its_last_block_on() -> None:
    engine = PretendEngine(Limits(num_blocks=40))
    for length in (16, 17, 40, 48):
        prompt = [engine.draw.randrange(100) for _ in range(length)]
        first = engine.add(make_request(prompt))
        engine.run()
        second = engine.add(make_request(prompt))
        other = engine.add(make_request(prompt, adapter="a"))
        engine.run()
        assert first.starts[0] == other.starts[0] == 0
        assert second.starts[0] == (length - 1) // BLOCK * BLOCK


def test_an_answer_is_part_of_the_next_turns_head() -> None:
    engine = PretendEngine(Limits(num_blocks=40), stop_rate=0.0)
    first = engine.add(make_request([1, 2, 3], new=60))
    engine.run()
    history = first.group.sequences[0].tokens
    second = engine.add(make_request([*history, 4, 5]))
    engine.run()
    assert second.starts[0] == 48  # 62 tokens of 63 are computed: the last was never fed


def test_a_head_that_another_computes_meanwhile_is_not_computed_again() -> None:
    limits = Limits(num_blocks=100, max_step_tokens=40)
    engine = PretendEngine(limits)
    prompt = [engine.draw.randrange(100) for _ in range(80)]
    engine.add(make_request(prompt, new=4))
    engine.step()
    late = engine.add(make_request(prompt, new=4))
    engine.add(make_request([*prompt[:48], 101, 102], new=4))
    engine.run()
    assert late.starts[0] >= 32
    assert engine.scheduler.num_matched_tokens >= 32 + 32


def test_equal_encoder_prompts_are_encoded_once() -> None:
    engine = PretendEngine(Limits(num_blocks=100), stop_rate=0.0)
    first, again, other = (engine.add(make_request([0], encoder=[5] * 40, adapter=a)) for a in (None, None, "a"))
    engine.step()
    assert engine.num_encoded == 3  # at the same moment nobody can wait for the other
    assert first.group.cross_blocks == again.group.cross_blocks != other.group.cross_blocks
    engine.run()
    engine.add(make_request([0], encoder=[5] * 40))
    engine.run()
    assert engine.num_encoded == 3


def test_without_the_cache_nothing_is_shared() -> None:
    engine = PretendEngine(Limits(num_blocks=100), prefix_cache=False)
    for encoder in ([], [7] * 40):
        for _ in range(2):
            watch = engine.add(make_request([3] * 40, encoder=encoder))
            engine.run()
            assert watch.starts[0] == 0
    assert engine.num_encoded == 2
    assert engine.scheduler.num_matched_tokens == 0


def test_answers_share_the_prompt_and_copy_only_its_last_block() -> None:
    engine = PretendEngine(Limits(num_blocks=100), stop_rate=0.0)
    watch = engine.add(make_request([1] * 40, answers=4, new=8))
    engine.step()
    tables = [sequence.blocks for sequence in watch.group.sequences]
    assert all(table == tables[0] for table in tables)
    plan = engine.step()
    assert len(plan.copies) == 3
    tables = [sequence.blocks for sequence in watch.group.sequences]
    assert len({tuple(table[:2]) for table in tables}) == 1
    assert len({table[2] for table in tables}) == 4
    engine.run()
    assert engine.num_copied == 3


def test_answers_that_end_give_back_their_slots() -> None:
    scheduler = Scheduler(Limits(num_blocks=40, max_sequences=4))
    group, other = Group(0, make_request([1], answers=3), 0.0), Group(1, make_request([2], answers=2), 0.0)
    scheduler.add(group)
    scheduler.add(other)
    scheduler.computed(scheduler.schedule())
    assert scheduler.fork(group, [0, 0, 0])
    for sequence in group.sequences:
        sequence.tokens.append(5)
    assert scheduler.schedule().admitted == ()
    assert scheduler.fork(group, [0, 2]) == []
    assert [sequence.index for sequence in group.sequences] == [0, 2]
    assert scheduler.schedule().admitted == (other,)
    scheduler.check()


def test_a_long_prompt_never_stalls_running_answers() -> None:
    limits = Limits(num_blocks=200, max_step_tokens=64, max_prefill_tokens=20)
    engine = PretendEngine(limits, stop_rate=0.0)
    answer = engine.add(make_request([1], new=60))
    engine.step()
    prompt = engine.add(make_request([2] * 500, new=2))
    for _ in range(20):
        plan = engine.step()
        assert {span.group for span in plan.spans} == {answer.group, prompt.group}
        assert plan.num_tokens <= 21


def test_an_encoder_prompt_longer_than_a_step_goes_alone() -> None:
    limits = Limits(num_blocks=200, max_step_tokens=64, max_prefill_tokens=20)
    engine = PretendEngine(limits)
    long = engine.add(make_request([0], encoder=[1] * 100))
    short = [engine.add(make_request([0], encoder=[2, place])) for place in range(3)]
    assert engine.step().encode == (long.group,)
    assert engine.step().encode == tuple(watch.group for watch in short)


def test_a_long_encoder_prompt_is_read_layer_by_layer_beside_running_answers() -> None:
    limits = Limits(num_blocks=200, max_step_tokens=64, max_prefill_tokens=20, encoder_layers=6)
    engine = PretendEngine(limits, stop_rate=0.0)
    answer = engine.add(make_request([0], encoder=[1] * 4, new=60))
    engine.step()
    prompt = engine.add(make_request([0], encoder=[2] * 100, new=2))
    plans = [engine.step() for _ in range(6)]
    readings = [plan.reading for plan in plans]
    assert readings == [(prompt.group, layer, layer + 1) for layer in range(6)]
    assert all(answer.group in {span.group for span in plan.spans} for plan in plans)
    assert prompt.group in {span.group for span in plans[-1].spans}, "it is answered as soon as it is read"


def test_nobody_waits_for_the_rest_of_a_reading_once_no_answer_runs() -> None:
    limits = Limits(num_blocks=200, max_step_tokens=64, max_prefill_tokens=20, encoder_layers=6)
    engine = PretendEngine(limits, stop_rate=0.0)
    answer = engine.add(make_request([0], encoder=[1] * 4, new=60))
    engine.step()
    prompt = engine.add(make_request([0], encoder=[2] * 100, new=2))
    assert engine.step().reading == (prompt.group, 0, 1)
    engine.cancel(answer.group.group_id)
    assert engine.step().reading == (prompt.group, 1, 6)


def test_a_reading_begins_anew_after_preemption() -> None:
    limits = Limits(num_blocks=10, max_sequences=4, max_step_tokens=64, max_prefill_tokens=4, encoder_layers=40)
    engine = PretendEngine(limits, stop_rate=0.0)
    engine.add(make_request([0], encoder=[1] * 4, new=100))
    for _ in range(14):
        engine.step()
    prompt = engine.add(make_request([0], encoder=[2] * 90, new=2))
    engine.run()
    assert engine.num_preempted
    assert prompt.finished_at is not None


def test_cancelling_frees_at_once_even_while_a_step_is_computed() -> None:
    scheduler = Scheduler(Limits(num_blocks=20))
    group, other = Group(0, make_request([1] * 40, answers=2), 0.0), Group(1, make_request([2] * 40), 0.0)
    scheduler.add(group)
    scheduler.add(other)
    plan = scheduler.schedule()
    scheduler.cancel(group)
    scheduler.computed(plan)
    scheduler.check()
    scheduler.cancel(group)
    assert group.status is Status.FINISHED
    assert (scheduler.num_running, scheduler.num_free_blocks) == (1, 17)
    waiting = Group(2, make_request([1]), 0.0)
    scheduler.add(waiting)
    scheduler.cancel(waiting)
    scheduler.finish(other)
    assert_empty(scheduler)


def test_lower_priorities_go_first() -> None:
    engine = PretendEngine(Limits(num_blocks=100, max_sequences=1, max_step_tokens=8))
    watches = [engine.add(make_request([1], priority=priority)) for priority in (2, 0, 1, 0)]
    engine.run()
    assert sorted(range(4), key=lambda place: watches[place].admitted_at or 0) == [1, 3, 2, 0]


def test_one_owners_flood_does_not_hold_up_another() -> None:
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=4), stop_rate=0.0)
    flood = [engine.add(make_request([1] * 20, new=20, owner="flood")) for _ in range(60)]
    for _ in range(30):
        engine.step()
    small = [engine.add(make_request([2] * 20, new=20, owner="small")) for _ in range(6)]
    engine.run()
    last = max(watch.finished_at or 0 for watch in small)
    # 6 of 12 that end from now on are the small owner's, give or take those that ran already.
    assert sum(30 < (watch.finished_at or 0) <= last for watch in flood) <= 6 + 2 * 4


def test_beside_a_flood_nobody_within_their_share_waits() -> None:
    """Answers of equal length end together: who asks again just then finds all slots taken by the flood."""
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=8), stop_rate=0.0)
    for _ in range(300):
        engine.add(make_request([1] * 20, new=20, owner="flood"))
    asked = [engine.add(make_request([2] * 20, new=20, owner="calm")) for _ in range(4)]
    current = list(asked)
    for _ in range(200):
        engine.step()
        for place, watch in enumerate(current):
            if watch.finished_at is not None and engine.num_steps > watch.finished_at + 2:
                current[place] = engine.add(make_request([2] * 20, new=20, owner="calm"))
                asked.append(current[place])
    started = [watch for watch in asked if watch.added_at < engine.num_steps]
    assert len(started) > 20
    assert {(watch.admitted_at or 0) - watch.added_at for watch in started} == {0}
    flood = [watch.group for watch in engine.live.values() if watch.group.request.owner == "flood"]
    assert sum(group.status is Status.RUNNING for group in flood) in range(4, 9)
    finished = 300 - len(flood)
    assert finished > 20, "the flood gets on with what it keeps"


@pytest.mark.parametrize(
    ("width", "owners", "expected"), [(1, 2, [4, 4]), (1, 3, [4, 2, 2]), (2, 2, [2, 2]), (3, 2, [1, 1])]
)
def test_a_share_is_an_even_part_of_the_slots(width: int, owners: int, expected: list[int]) -> None:
    """Eight slots; what somebody has beyond the share goes only where the share of another is not reached."""
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=8), stop_rate=0.0)
    names = [f"owner {number}" for number in range(owners)]
    for name in names:
        for _ in range(9):
            engine.add(make_request([1] * 5, new=30, beams=width, owner=name))
        engine.step()
    running = [w.group.request.owner for w in engine.live.values() if w.group.status is Status.RUNNING]
    assert [running.count(name) for name in names] == expected


def test_owners_beyond_the_number_of_slots_have_one_each_at_most() -> None:
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=4), stop_rate=0.0)
    for name in "abcdefg":
        for _ in range(4):
            engine.add(make_request([1] * 5, new=30, owner=name))
        engine.step()
    running = [w.group.request.owner for w in engine.live.values() if w.group.status is Status.RUNNING]
    assert sorted(running) == ["a", "b", "c", "d"]


def test_nobody_makes_room_where_blocks_would_not_do() -> None:
    engine = PretendEngine(Limits(num_blocks=12, max_sequences=4), stop_rate=0.0)
    for _ in range(4):
        engine.add(make_request([1], new=8, owner="first"))
    engine.step()
    engine.add(make_request([2] * (8 * BLOCK), new=8, owner="large"))
    assert not engine.step().preempted
    engine.run()


def test_who_has_no_more_than_a_share_makes_no_room() -> None:
    """A has six slots of eight and B two, which came later: it is A who makes room for C."""
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=8), stop_rate=0.0)
    for owner, count in (("a", 9), ("b", 2), ("c", 1)):
        for _ in range(count):
            engine.add(make_request([1] * 5, new=30, owner=owner))
        plan = engine.step()
    assert [group.request.owner for group in plan.preempted] == ["a"]
    assert [group.request.owner for group in plan.admitted] == ["c"]


@pytest.mark.parametrize("hindrance", ["blocks", "place"])
def test_a_share_that_cannot_be_given_now_holds_up_no_other(hindrance: str) -> None:
    limits = Limits(num_blocks=16, max_sequences=4)
    engine = PretendEngine(limits, stop_rate=0.0, num_places=1 if hindrance == "place" else None)
    for _ in range(6):
        engine.add(make_request([1], new=8, adapter="a", owner="first"))
    engine.step()
    prompt = [2] * (10 * BLOCK if hindrance == "blocks" else 1)
    hindered = engine.add(make_request(prompt, new=8, adapter="b", owner="hindered"))
    other = engine.add(make_request([3], new=8, owner="other"))
    engine.step()
    assert hindered.admitted_at is None
    assert other.admitted_at == other.added_at
    engine.run()


def test_free_slots_are_kept_for_who_is_more_urgent() -> None:
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=8), stop_rate=0.0)
    ending = [engine.add(make_request([1], new=new, priority=1, owner="first")) for new in (6, 9)]
    for _ in range(6):
        engine.add(make_request([1], new=50, priority=1, owner="first"))
    engine.step()
    urgent = engine.add(make_request([1], new=8, beams=2, owner="urgent"))
    for _ in range(2):
        engine.add(make_request([1], new=50, beams=2, priority=1, owner="second"))
        while ending[0].finished_at is None:
            engine.step()
    engine.run()
    assert urgent.admitted_at == (ending[1].finished_at or 0) + 1


def test_who_is_seated_and_makes_room_in_one_step_has_no_slot() -> None:
    """B takes a free slot and one of A's, C has a right to it, and A's other group is too wide to make room."""
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=9), stop_rate=0.0)
    engine.add(make_request([1], new=30, beams=6, owner="a"))
    for owner in "ab":
        engine.add(make_request([1], new=30, owner=owner))
    engine.step()
    wide = engine.add(make_request([1], new=30, beams=2, owner="b"))
    small = engine.add(make_request([1], new=30, owner="c"))
    plan = engine.step()
    assert wide.group in plan.preempted
    assert plan.admitted == (small.group,)
    engine.run()


def test_many_owners_come_and_go_and_each_has_what_is_due() -> None:
    draw = random.Random(3)
    engine = PretendEngine(Limits(num_blocks=2000, max_sequences=12), stop_rate=0.02)
    num_sharing = 0
    for step in range(1500):
        for _ in range(draw.choice([0, 0, 1, 2, 5]) if len(engine.live) < 60 else 0):
            name = f"{draw.randrange(4) if draw.random() < 0.7 else draw.randrange(4, 40)}"
            engine.add(make_request([draw.randrange(3)] * draw.randint(1, 30), new=draw.randint(1, 40), owner=name))
        if engine.live and draw.random() < 0.2:
            engine.cancel(draw.choice(sorted(engine.live)))
        before = Counter(w.group.request.owner for w in engine.live.values() if w.group.status is Status.RUNNING)
        present = {watch.group.request.owner for watch in engine.live.values()}
        num_free = engine.scheduler.num_free_slots
        plan = engine.step()
        going, coming = (Counter(g.request.owner for g in side) for side in (plan.preempted, plan.admitted))
        share = max(1, 12 // max(1, len(present)))
        after = before - going + coming
        assert all(before[owner] > share for owner in going), f"step {step}: nobody within a share makes room"
        assert len(plan.preempted) <= len(plan.admitted)
        waiting = {w.group.request.owner for w in engine.live.values() if w.group.status is Status.WAITING}
        if not num_free and max(after.values()) > share:
            assert all(after[owner] >= share for owner in waiting), f"step {step}: a share is given at once"
        num_sharing += bool(plan.preempted)
    assert num_sharing > 100
    engine.run()


def test_making_room_again_and_again_costs_no_more_than_one_recomputation_each() -> None:
    """Tiny requests, one after another: the same group of the flood may have to go for each, but none starves."""
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=4), stop_rate=0.0)
    flood = [engine.add(make_request([1] * 40, new=20, owner="flood")) for _ in range(12)]
    num_tiny = 0
    while any(watch.finished_at is None for watch in flood):
        if engine.num_steps % 2:
            engine.add(make_request([2], new=1, owner="tiny"))
            num_tiny += 1
        engine.step()
        assert engine.num_steps < 12 * 20
    assert 0 < engine.num_preempted <= num_tiny


def test_owners_get_equal_tokens_whatever_the_size_of_their_requests() -> None:
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=4), stop_rate=0.0)
    for _ in range(200):
        engine.add(make_request([1] * 5, new=5, owner="small"))
    for _ in range(40):
        engine.add(make_request([2] * 40, new=40, owner="large"))
    served = {"small": 0, "large": 0}
    for _ in range(300):
        for span in engine.step().spans:
            served[span.group.request.owner] += span.length
    assert abs(served["small"] - served["large"]) <= 4 * 80
    assert min(served.values()) > 500


def test_a_stream_of_new_owners_does_not_starve_an_old_one() -> None:
    engine = PretendEngine(Limits(num_blocks=100, max_sequences=2), stop_rate=0.0)
    old = [engine.add(make_request([1] * 10, new=10, owner="old")) for _ in range(10)]
    for step in range(450):
        if step % 5 == 0:  # as fast as they can be answered, so that they alone would keep the engine busy
            engine.add(make_request([2] * 10, new=10, owner=f"new {step}"))
        engine.step()
    assert all(watch.finished_at is not None for watch in old)


@pytest.mark.parametrize("seed", range(2))
def test_under_constant_load_nobody_waits_for_ever(seed: int) -> None:
    draw = random.Random(seed)
    engine = PretendEngine(Limits(num_blocks=60, max_sequences=8, max_step_tokens=64), seed=seed)
    watches = []
    for _ in range(800):
        if len(engine.live) < 16:
            request = draw_request(draw, seq2seq=False)
            watches.append(engine.add(make_request(request.start_ids, new=20, owner=request.owner)))
        engine.step()
    waits = [(watch.finished_at or engine.num_steps) - watch.added_at for watch in watches]
    assert len(watches) > 100
    assert max(waits) < 250


def test_a_group_without_a_place_for_its_adapter_waits_and_others_go_on() -> None:
    engine = PretendEngine(Limits(num_blocks=100, max_sequences=4), stop_rate=0.0, num_places=1)
    first = engine.add(make_request([1], new=50, adapter="a"))
    engine.step()
    waiting = engine.add(make_request([1], new=2, adapter="b"))
    others = [engine.add(make_request([1], new=2, adapter=adapter)) for adapter in ("a", None, None)]
    for _ in range(5):
        engine.step()
    assert waiting.admitted_at is None
    assert all(other.finished_at for other in others)
    engine.cancel(first.group.group_id)
    engine.step()
    assert waiting.group.status is Status.RUNNING
    engine.run()
    assert_empty(engine.scheduler)


@pytest.mark.parametrize("num_places", [1, 2])
def test_streams_of_held_adapters_do_not_starve_others(num_places: int) -> None:
    limits = Limits(num_blocks=100, max_sequences=4)
    engine = PretendEngine(limits, stop_rate=0.0, num_places=num_places)
    held = "ad"[:num_places]
    engine.add(make_request([1], new=20, adapter="a"))
    engine.step()
    rare = [engine.add(make_request([2], new=20, adapter=adapter, owner="rare")) for adapter in "bcb"]
    plain = []
    for step in range(400):
        if step % 4 == 0:
            # Its own owner comes first again and again, so that fair queueing alone would not help.
            adapter = held[step // 4 % num_places]
            engine.add(make_request([1], new=10, adapter=adapter, owner="rare" if step % 8 else f"new {step}"))
        if step % 16 == 0:
            plain.append(engine.add(make_request([3], new=2, owner="plain")))
        engine.step()
    assert all(watch.finished_at is not None for watch in rare)
    assert max((watch.finished_at or 400) - watch.added_at for watch in plain) < 60


def test_adapters_in_turn_are_not_loaded_for_each_request() -> None:
    engine = PretendEngine(Limits(num_blocks=400, max_sequences=8), stop_rate=0.0, num_places=1)
    for place in range(48):
        engine.add(make_request([place], new=4, adapter="abc"[place % 3]))
    engine.run()
    assert engine.places is not None
    assert engine.places.num_loaded <= 9
    assert_empty(engine.scheduler)


def test_limits_that_could_not_hold_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens"):
        Limits(num_blocks=1, max_sequences=9, max_step_tokens=8)
    with pytest.raises(ValueError, match="at least 1"):
        Limits(num_blocks=0)
